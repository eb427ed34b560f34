package stream

import (
	"math"
	"net/netip"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	tracev1 "github.com/replypath/replypath/api/trace/v1"
	"github.com/replypath/replypath/pkg/trace"
)

// ProtoFinding returns the finding as the API and -o json show it.
func ProtoFinding(f *trace.Finding) *tracev1.Finding {
	out := &tracev1.Finding{
		Id: text(f.ID), Severity: f.Severity.String(), Confidence: f.Confidence.String(), Direction: protoDirection(f.Direction),
		Summary: text(f.Summary), Cause: text(f.Cause), Fix: texts(f.Fix), Verify: texts(f.Verify),
		Where: protoWhere(&f.Where), Path: ProtoPath(&f.Path), Count: f.Count,
		FirstSeen: timestamp(f.FirstSeen), LastSeen: timestamp(f.LastSeen), ConnectionsOmitted: f.Omitted,
	}
	for _, e := range f.Evidence {
		out.Evidence = append(out.Evidence, &tracev1.Evidence{Time: timestamp(e.Time), Text: text(e.Text)})
	}
	for _, c := range f.Connections {
		out.Connections = append(out.Connections, &tracev1.Connection{
			Protocol: c.Protocol.String(), Client: address(c.Src), Server: address(c.Dst), Count: c.Count, LastSeen: timestamp(c.Last),
		})
	}
	return out
}

// ProtoPath returns the path as the API and -o json show it.
func ProtoPath(p *trace.Path) *tracev1.Path {
	out := &tracev1.Path{
		Protocol: p.Protocol.String(), Client: address(p.Client), Server: address(p.Server),
		Request: protoHops(p.Request), Reply: protoHops(p.Reply),
		FirstSeen: timestamp(p.First), LastSeen: timestamp(p.Last), Requests: p.Requests, Answered: p.Answered, Reset_: p.Reset,
		Sequence: p.Sequence, Established: p.Established,
	}
	if p.Protocol == 0 && !p.Client.IsValid() {
		out.Protocol = "" // of a fault that is about no packet
	}
	if p.Process.PID != 0 {
		out.Process = &tracev1.Process{Pid: p.Process.PID, Comm: text(p.Process.Comm)}
	}
	return out
}

func protoHops(hops []trace.Hop) []*tracev1.Hop {
	var out []*tracev1.Hop
	for i := range hops {
		h := &hops[i]
		out = append(out, &tracev1.Hop{
			Netns: text(h.Place.Name), NetnsInode: uint32(h.Place.Netns), Workload: text(h.Place.Workload),
			InDevice: text(h.In.Name), OutDevice: text(h.Out.Name),
			Source: address(h.Tuple.Src), Destination: address(h.Tuple.Dst),
			Time: timestamp(h.First), Count: h.Count, Node: text(h.Place.Node), Ttl: uint32(h.TTL),
			ArrivedSource: address(h.Arrived.Src), ArrivedDestination: address(h.Arrived.Dst), Bridged: h.Bridged, InTunnel: text(h.InTunnel), OutTunnel: text(h.OutTunnel),
		})
	}
	return out
}

func protoWhere(w *trace.Where) *tracev1.Where {
	return &tracev1.Where{
		Node: text(w.Node), Netns: text(w.Place.Name), NetnsInode: uint32(w.Place.Netns),
		Device: text(w.Device), Hook: text(w.Hook), Workload: text(w.Place.Workload),
	}
}

func protoDirection(d trace.Direction) tracev1.Direction {
	switch d {
	case trace.Request:
		return tracev1.Direction_REQUEST
	case trace.Reply:
		return tracev1.Direction_REPLY
	}
	return tracev1.Direction_DIRECTION_UNSPECIFIED
}

func protoLosses(losses []Loss) []*tracev1.Loss {
	var out []*tracev1.Loss
	for _, l := range losses {
		out = append(out, &tracev1.Loss{Cause: text(l.Cause), Count: saturate(l.Count)})
	}
	return out
}

func protoNode(s Status) *tracev1.Node {
	node := &tracev1.Node{
		Name: text(s.Node), Version: text(s.Version), Kernel: text(s.Kernel), Tier: text(s.Tier),
		Events: s.Events, Started: timestamp(s.Started), LivePaths: saturate(uint64(max(s.Live, 0))),
		Time: timestamppb.Now(),
	}
	for _, h := range s.Hooks {
		node.Hooks = append(node.Hooks, &tracev1.HookStatus{Name: text(h.Name), State: text(h.State), Reason: text(h.Reason), Means: text(h.Means)})
	}
	return node
}

// text makes a string fit for protobuf: names of devices, processes and
// workloads come from the kernel as bytes, and one that is not UTF-8 would
// make the whole answer fail.
func text(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

func texts(list []string) []string {
	var out []string
	for _, s := range list {
		out = append(out, text(s))
	}
	return out
}

// address returns "192.0.2.1:80" or "[2001:db8::1]:80"; "" when there is none.
func address(a netip.AddrPort) string {
	if !a.Addr().IsValid() {
		return ""
	}
	return a.String()
}

// timestamp returns nil for the zero time.
func timestamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

// saturate fits a counter into the API's 32 bits.
func saturate(n uint64) uint32 { return uint32(min(n, math.MaxUint32)) }
