package stream

import (
	"net/netip"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	tracev1 "github.com/replypath/replypath/api/trace/v1"
	"github.com/replypath/replypath/pkg/trace"
)

// TraceFinding is the reverse of ProtoFinding, for who joins the answers of several
// agents. What the API does not carry stays empty; what cannot be read, too.
func TraceFinding(f *tracev1.Finding) trace.Finding {
	out := trace.Finding{
		ID: f.GetId(), Severity: parseWord(f.GetSeverity(), trace.Info, trace.Error), Confidence: parseWord(f.GetConfidence(), trace.Possible, trace.Certain),
		Direction: traceDirection(f.GetDirection()), Summary: f.GetSummary(), Cause: f.GetCause(), Fix: f.GetFix(), Verify: f.GetVerify(),
		Where: traceWhere(f.GetWhere()), Path: TracePath(f.GetPath()), Count: f.GetCount(),
		FirstSeen: parseTime(f.GetFirstSeen()), LastSeen: parseTime(f.GetLastSeen()), Omitted: f.GetConnectionsOmitted(),
	}
	for _, e := range f.GetEvidence() {
		out.Evidence = append(out.Evidence, trace.Evidence{Time: parseTime(e.GetTime()), Text: e.GetText()})
	}
	for _, c := range f.GetConnections() {
		out.Connections = append(out.Connections, trace.Connection{Tuple: TraceTuple(c), Count: c.GetCount(), Last: parseTime(c.GetLastSeen())})
	}
	return out
}

// TracePath is the reverse of ProtoPath.
func TracePath(p *tracev1.Path) trace.Path {
	protocol := parseProtocol(p.GetProtocol())
	out := trace.Path{
		Protocol: protocol, Client: parseAddress(p.GetClient()), Server: parseAddress(p.GetServer()),
		Request: traceHops(protocol, p.GetRequest()), Reply: traceHops(protocol, p.GetReply()),
		First: parseTime(p.GetFirstSeen()), Last: parseTime(p.GetLastSeen()), Requests: p.GetRequests(), Answered: p.GetAnswered(), Reset: p.GetReset_(),
		Process:  trace.Process{PID: p.GetProcess().GetPid(), Comm: p.GetProcess().GetComm()},
		Sequence: p.GetSequence(), Established: p.GetEstablished(),
	}
	out.Connection = trace.Tuple{Protocol: protocol, Src: out.Client, Dst: out.Server}
	return out
}

// TraceTuple returns a connection's tuple.
func TraceTuple(c *tracev1.Connection) trace.Tuple {
	return trace.Tuple{Protocol: parseProtocol(c.GetProtocol()), Src: parseAddress(c.GetClient()), Dst: parseAddress(c.GetServer())}
}

// ProtoTuple returns a tuple as a request names it.
func ProtoTuple(t trace.Tuple) *tracev1.Connection {
	return &tracev1.Connection{Protocol: t.Protocol.String(), Client: address(t.Src), Server: address(t.Dst)}
}

func traceHops(protocol trace.Protocol, hops []*tracev1.Hop) []trace.Hop {
	var out []trace.Hop
	for _, h := range hops {
		hop := trace.Hop{
			Place: trace.Place{Node: h.GetNode(), Netns: trace.Netns(h.GetNetnsInode()), Name: h.GetNetns(), Workload: h.GetWorkload()},
			In:    trace.Device{Name: h.GetInDevice()}, Out: trace.Device{Name: h.GetOutDevice()},
			Tuple: trace.Tuple{Protocol: protocol, Src: parseAddress(h.GetSource()), Dst: parseAddress(h.GetDestination())},
			First: parseTime(h.GetTime()), Count: h.GetCount(), TTL: uint8(h.GetTtl()), Bridged: h.GetBridged(), InTunnel: h.GetInTunnel(), OutTunnel: h.GetOutTunnel(),
		}
		if h.GetArrivedSource() != "" {
			hop.Arrived = trace.Tuple{Protocol: protocol, Src: parseAddress(h.GetArrivedSource()), Dst: parseAddress(h.GetArrivedDestination())}
		}
		out = append(out, hop)
	}
	return out
}

func traceWhere(w *tracev1.Where) trace.Where {
	return trace.Where{
		Node: w.GetNode(), Device: w.GetDevice(), Hook: w.GetHook(),
		Place: trace.Place{Node: w.GetNode(), Netns: trace.Netns(w.GetNetnsInode()), Name: w.GetNetns(), Workload: w.GetWorkload()},
	}
}

func traceDirection(d tracev1.Direction) trace.Direction {
	switch d {
	case tracev1.Direction_REQUEST:
		return trace.Request
	case tracev1.Direction_REPLY:
		return trace.Reply
	}
	return trace.DirectionUnknown
}

// parseWord returns the value that prints so; zero when there is none.
func parseWord[T interface {
	~uint8
	String() string
}](word string, first, last T) T {
	for v := first; v <= last; v++ {
		if v.String() == word {
			return v
		}
	}
	return 0
}

func parseProtocol(name string) trace.Protocol {
	return parseWord(name, trace.Protocol(0), trace.Protocol(254))
}

// parseAddress returns the zero value for what is none.
func parseAddress(text string) netip.AddrPort {
	a, _ := netip.ParseAddrPort(text)
	return a
}

func parseTime(t *timestamppb.Timestamp) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.AsTime()
}
