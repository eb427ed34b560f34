package stream

import (
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	tracev1 "github.com/replypath/replypath/api/trace/v1"
	"github.com/replypath/replypath/internal/recorder"
	"github.com/replypath/replypath/pkg/trace"
	"github.com/replypath/replypath/pkg/trace/dns"
)

const (
	// dnsBuffer is how many queries wait for a slow reader, dnsBatch how many are sent at a time.
	dnsBuffer = 32768
	dnsBatch  = 256
	// dnsWait is how long a query waits for others to be sent with.
	dnsWait = 20 * time.Millisecond
)

type dnsAnswer = grpc.ServerStreamingServer[tracev1.DnsResponse]

// Queries implements tracev1.TracerServer. Its header is sent when the subscription stands.
func (s *service) Queries(request *tracev1.DnsRequest, answer dnsAnswer) error {
	selected, err := parseSelection(request.GetFilter(), request.GetProcessGroup())
	if err != nil {
		return err
	}
	since, err := sinceOf(request)
	if err != nil {
		return err
	}
	var subscription *recorder.Subscription
	if request.GetFollow() {
		subscription = s.source.Recorder().SubscribeExchanges(dnsBuffer)
		defer subscription.Close()
	}
	if err := answer.SendHeader(metadata.MD{}); err != nil {
		return err
	}
	if err := s.source.Settle(answer.Context()); err != nil {
		return settleError(err)
	}
	b := &dnsSender{selection: selected, answer: answer}
	kept := make(map[told]bool)
	if !request.GetLossesOnly() {
		for _, x := range s.source.Recorder().Exchanges(since) {
			if request.GetFollow() {
				kept[toldOf(x)] = true
			}
			if err := b.add(x); err != nil {
				return err
			}
		}
		if err := b.flush(); err != nil {
			return err
		}
	}
	if subscription == nil {
		end := &tracev1.DnsEnd{Losses: protoLosses(s.source.Losses(since))}
		return answer.Send(&tracev1.DnsResponse{Result: &tracev1.DnsResponse_End{End: end}})
	}
	return s.followDNS(b, subscription, kept)
}

// told tells one end of a query from others.
type told struct {
	number  uint64
	outcome trace.Outcome
}

func toldOf(x *trace.Exchange) told { return told{x.Number, x.Outcome} }

// followDNS sends what ends from now on. What was handed out between subscription and
// answer is among what was kept, and comes once more at first.
func (s *service) followDNS(b *dnsSender, subscription *recorder.Subscription, kept map[told]bool) error {
	tick := time.NewTicker(dnsWait)
	defer tick.Stop()
	for {
		var err error
		select {
		case <-b.answer.Context().Done():
			return status.FromContextError(b.answer.Context().Err()).Err()
		case <-s.stopping:
			return status.Error(codes.Unavailable, "agent is stopping")
		case update, ok := <-subscription.Updates():
			if !ok {
				return status.Error(codes.Unavailable, "agent is stopping")
			}
			if kept[toldOf(update.Exchange)] {
				continue
			}
			kept = nil
			err = b.add(update.Exchange)
		case <-tick.C:
			err = b.flush()
		}
		if err == nil {
			err = b.tellLost(subscription.Lost())
		}
		if err != nil {
			return err
		}
	}
}

// dnsSender sends queries that are asked for, many at a time.
type dnsSender struct {
	selection
	answer dnsAnswer
	batch  []*tracev1.DnsQuery
	lost   uint64 // as told last
	tuples []trace.Tuple
}

func (b *dnsSender) add(x *trace.Exchange) error {
	b.tuples = x.FilterTuples(b.tuples[:0])
	if b.group != 0 && x.Process.PGID != b.group || !b.filter.MatchTuples(b.tuples) {
		return nil
	}
	if b.batch = append(b.batch, ProtoExchange(x)); len(b.batch) < dnsBatch {
		return nil
	}
	return b.flush()
}

func (b *dnsSender) flush() error {
	if len(b.batch) == 0 {
		return nil
	}
	queries := &tracev1.DnsQueries{Queries: b.batch}
	b.batch = nil
	return b.answer.Send(&tracev1.DnsResponse{Result: &tracev1.DnsResponse_Queries{Queries: queries}})
}

func (b *dnsSender) tellLost(lost uint64) error {
	if lost == b.lost {
		return nil
	}
	news := &tracev1.LostEvents{Count: saturate(lost - b.lost), Cause: slowReader}
	b.lost = lost
	return b.answer.Send(&tracev1.DnsResponse{Result: &tracev1.DnsResponse_LostEvents{LostEvents: news}})
}

// ofPaths leaves out what was lost of DNS messages alone.
func ofPaths(losses []Loss) []Loss {
	var of []Loss
	for _, l := range losses {
		if !strings.HasPrefix(l.Cause, "dns_") {
			of = append(of, l)
		}
	}
	return of
}

// ProtoExchange returns a DNS query as the API and -o json show it.
func ProtoExchange(x *trace.Exchange) *tracev1.DnsQuery {
	home := x.Home()
	q := &tracev1.DnsQuery{
		Number: x.Number, Time: timestamp(x.First), Protocol: x.Protocol.String(),
		Client: address(x.Client), Server: address(x.Server), Responder: address(x.Responder),
		Netns: text(home.Name), NetnsInode: uint32(home.Netns), Workload: text(home.Workload),
		Id: uint32(x.ID), Name: text(x.Name), Type: dns.TypeName(x.Type), Class: dns.ClassName(x.Class),
		Outcome: x.Outcome.String(), Stage: x.Stage.String(), Via: x.Via.String(), LatencySeconds: x.Latency.Seconds(),
		Attempts: x.Attempts, Repeats: x.Repeats, Twin: x.Twin, RecursionDesired: x.RD,
		Request: protoHops(x.Hops(trace.Request)), Reply: protoHops(x.Hops(trace.Reply)),
	}
	if x.Process.PID != 0 {
		q.Process = &tracev1.Process{Pid: x.Process.PID, Comm: text(x.Process.Comm)}
	}
	if d := x.Drop; d != nil {
		q.Drop = &tracev1.DnsDrop{
			Time: timestamp(d.Time), Direction: protoDirection(d.Direction), Netns: text(d.Place.Name), NetnsInode: uint32(d.Place.Netns),
			Device: text(d.Device.Name), Reason: text(d.Reason), Symbol: text(d.Symbol),
		}
	}
	if len(x.Response) > 0 {
		protoResponse(q, x)
	}
	return q
}

// protoResponse fills in what the response says.
func protoResponse(q *tracev1.DnsQuery, x *trace.Exchange) {
	m, err := dns.Parse(x.Response, int(x.ResponseLength))
	if err != nil {
		return // it was read once
	}
	q.Rcode, q.Truncated, q.Authoritative, q.RecursionAvailable = dns.RcodeName(m.Rcode), m.TC, m.AA, m.RA
	q.EdnsSize, q.Cut = uint32(m.EDNS), m.Cut
	for _, r := range m.Records {
		q.Answers = append(q.Answers, &tracev1.DnsRecord{Name: text(r.Name), Type: dns.TypeName(r.Type), Ttl: r.TTL, Data: text(r.Data)})
	}
}

// asked is a request that may say since when.
type asked interface{ GetSince() *timestamppb.Timestamp }
