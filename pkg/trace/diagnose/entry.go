package diagnose

import (
	"fmt"

	"github.com/replypath/replypath/pkg/trace"
)

var conntrackEntryLost = Rule{
	ID:       "conntrack-entry-lost",
	Title:    "NAT state vanished under a live connection",
	Severity: trace.Error,
	Doc: "The handshake (of UDP: the question) was translated by a host on the way, and a later packet of the same connection arrived without translation, or at another host, and was refused with a reset or dropped " +
		"as INVALID, or had no route with the addresses that the NAT should have replaced: the connection tracking entry of the host that translates is gone (flushed, timed out, evicted, or lost in a failover). Recognised by the reset and by the addresses that the " +
		"handshake had at each host; for UDP by an answer that no socket took, after others that were. A connection that nobody translates, or that its own end has closed, is none of these.",
	explain: explainEntryLost,
}

// unmatchedSuspects returns the host that translated the connection's handshake.
func unmatchedSuspects(c *trace.Case) []trace.Case {
	for i := range c.Path.Request {
		h := &c.Path.Request[i]
		if !translates(h) {
			continue
		}
		s := suspect(c, trace.SymptomUnmatched, h)
		s.Event.Tuple = h.Arrived
		if c.Direction == trace.Reply {
			s.Event.Tuple, s.Event.InIndex = h.Tuple.Reverse(), h.Out.Index
		}
		return []trace.Case{s}
	}
	return hiders(c)
}

func explainEntryLost(c *trace.Case, s *trace.HostState) *explanation {
	lost := c.Suspect && c.Symptom == trace.SymptomUnmatched || isInvalidMidway(c) || isUntranslated(c)
	h := requestAt(&c.Path, c.Place.Netns)
	if !lost || h == nil || !translates(h) {
		return nil
	}
	here, p := name(c.Place), &c.Path
	tool := at(c.Place, "conntrack -L -p %s --orig-src %s --orig-dst %s --sport %d", p.Protocol, h.Arrived.Src.Addr(), h.Arrived.Dst.Addr(), h.Arrived.Src.Port())
	e := &explanation{
		confidence: trace.Likely,
		direction:  c.Direction,
		device:     h.In.Name,
		fault:      "entry of " + h.Arrived.Dst.String(),
		summary:    fmt.Sprintf("%s lost its NAT entry of a live connection to %s", here, p.Server),
		cause: fmt.Sprintf("%s translated the connection's handshake from %s to %s. A later packet of the same connection was not translated like that: the connection tracking entry is gone "+
			"(flushed, timed out, evicted when the table was full, or lost in a failover), and the connection with it.", here, h.Arrived.Dst, h.Tuple.Dst),
		fix: []string{
			at(c.Place, "sysctl -w net.netfilter.nf_conntrack_tcp_timeout_established=86400") + "   # longer than connections stay idle; and do not flush (conntrack -F, -D) while they live",
			"# let the client connect again: this connection cannot be mended",
		},
		verify: []string{tool + "   # must show the entry while a connection lives"},
	}
	if p.Protocol == trace.UDP {
		e.fix = []string{
			at(c.Place, "sysctl -w net.netfilter.nf_conntrack_udp_timeout_stream=300") + "   # longer than the exchange stays idle; and do not flush (conntrack -F, -D) while it lives",
			"# let the client send before that time has passed, or ask again: its next datagram makes the entry anew",
		}
	}
	if h.Arrived.Dst == h.Tuple.Dst {
		e.cause = fmt.Sprintf("%s translated the connection's source from %s to %s. A later packet of the same connection was not translated like that: the connection tracking entry is gone "+
			"(flushed, timed out, evicted when the table was full, or lost in a failover), and the connection with it.", here, h.Arrived.Src, h.Tuple.Src)
	}
	e.evidence = append(e.evidence, state(s, "handshake: %s came to %s and left it as %s", h.Arrived, here, h.Tuple))
	return e
}

// isInvalidMidway reports a drop by netfilter, after the handshake, of a packet that connection tracking does not know.
func isInvalidMidway(c *trace.Case) bool {
	ev := &c.Event
	return c.Symptom == trace.SymptomDrop && isNetfilterDrop(c) && c.Path.Answered && !ev.Conntrack.Known() && ev.Conntrack.Info == 0 &&
		!ev.Flags.Has(trace.SYN) && !ev.Flags.Has(trace.RST) && !ev.Flags.Has(trace.FIN)
}

// isUntranslated reports a packet, after the handshake, that died where the handshake
// was translated, with the addresses that it came with: it was routed by what the NAT
// was to replace, or tracked anew. What is a proxy of the host's own (IPVS) looks the
// same to filters, which is why these count only for a packet that is new to conntrack.
func isUntranslated(c *trace.Case) bool {
	ev := &c.Event
	h := requestAt(&c.Path, c.Place.Netns)
	if c.Symptom != trace.SymptomDrop || c.Suspect || !c.Path.Answered || h == nil || !translates(h) ||
		ev.Tuple.Protocol != trace.TCP || ev.Flags == 0 || ev.Flags.Has(trace.SYN) || ev.InIndex == 0 || !ev.HasRoute {
		return false
	}
	came, replaced := h.Arrived, h.Tuple.Dst != h.Arrived.Dst
	if c.Direction == trace.Reply {
		came, replaced = h.Tuple.Reverse(), h.Tuple.Src != h.Arrived.Src
	}
	if ev.Tuple != came {
		return false
	}
	if isNetfilterDrop(c) {
		ct := &ev.Conntrack
		return ct.Known() && ct.Info == conntrackNew && ct.Reply == ct.Original.Reverse()
	}
	return replaced && (isRoutingDrop(ev) || isNeighborDrop(ev))
}

// conntrackNew is IP_CT_NEW of include/uapi/linux/netfilter/nf_conntrack_common.h.
const conntrackNew = 2
