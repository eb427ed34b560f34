package correlate

import (
	"strings"

	"github.com/replypath/replypath/pkg/trace"
)

// dataDrops is how many packets of an established connection must be dropped
// before that is a fault: single ones are retransmitted and nobody notices.
const dataDrops = 3

// addDrop opens a case when the dropped packet mattered.
func (t *Table) addDrop(ev *trace.Event) {
	if ev.Inner && isTooBig(ev) && isLost(ev) {
		t.addTooBigDrop(ev)
		return
	}
	if ev.Inner || ev.OtherHost && !isBridgeDrop(ev) {
		return
	}
	if t.isRefusal(ev) {
		t.refuse(ev)
		return
	}
	if isOwnBusiness(ev) {
		t.keepUntaken(ev)
		return
	}
	if ev.Flags.IsSYN() || ev.Flags.IsSYNACK() {
		t.addHandshakeDrop(ev)
		return
	}
	t.addDataDrop(ev)
}

// isBridgeDrop reports the one drop of a packet to another MAC that is on its
// way: by a bridge's own filter, for its size, or by a program or filter of tc or XDP at its port.
// All others drop what was flooded here. Where
// the kernel gives no reason (before 5.17; early in the bridge also later), the function tells.
func isBridgeDrop(ev *trace.Event) bool {
	if ev.BySwitch() {
		return true
	}
	switch ev.Reason {
	case "NETFILTER_DROP", "XDP", "TC_INGRESS", "TC_EGRESS":
		return true
	case "", "NOT_SPECIFIED":
		return isBeforeArrival(ev) || strings.HasPrefix(ev.Symbol, "do_xdp_generic") || strings.HasPrefix(ev.Symbol, "netif_receive_generic_xdp") ||
			strings.HasPrefix(ev.Symbol, "__netif_receive_skb_core") || strings.HasPrefix(ev.Symbol, "__dev_queue_xmit") ||
			strings.HasPrefix(ev.Symbol, "nf_hook_slow") || strings.HasPrefix(ev.Symbol, "nft_do_chain") ||
			strings.HasPrefix(ev.Symbol, "br_handle_frame") || strings.HasPrefix(ev.Symbol, "br_nf_") ||
			strings.HasPrefix(ev.Symbol, "br_dev_queue_push_xmit") || strings.HasPrefix(ev.Symbol, "__dev_forward_skb") || strings.HasPrefix(ev.Symbol, "dev_forward_skb") ||
			strings.HasPrefix(ev.Symbol, "veth_xmit") || strings.HasPrefix(ev.Symbol, "ip6_fragment") || strings.HasPrefix(ev.Symbol, "ip_do_fragment") || strings.HasPrefix(ev.Symbol, "ip_fragment")
	}
	return false
}

// addDataDrop follows drops after the handshake. A socket that cannot send says
// so once; on the way it takes some drops to be sure that they matter.
func (t *Table) addDataDrop(ev *trace.Event) {
	if ev.Flags.Has(trace.RST) {
		return
	}
	t.addPacketDrop(ev, ev)
}

// addPacketDrop follows the drop of a packet after the handshake. The packet is
// the one dropped, or the one that it carried.
func (t *Table) addPacketDrop(packet, ev *trace.Event) {
	p, d := t.findTuple(ev.Netns, packet.Tuple)
	if p == nil {
		if packet.Flags.Has(trace.FIN) {
			return // the rest of a connection that is gone
		}
		p, d = t.adopt(packet)
	}
	if p.closed {
		return
	}
	p.drops++
	p.last, p.changed = ev.Time, true
	p.dropAt(d, ev)
	if p.drops >= dataDrops || ev.Unbuilt {
		t.open(p, trace.SymptomDrop, d, ev)
	}
}

func (t *Table) addHandshakeDrop(ev *trace.Event) { t.addHandshakePacketDrop(ev, ev) }

// addHandshakePacketDrop follows the drop of a SYN or SYN-ACK: the packet is the
// one dropped, or the one that it carried.
func (t *Table) addHandshakePacketDrop(packet, ev *trace.Event) {
	d, seq, request := trace.Request, packet.Seq, packet.Tuple
	find := func() *path { return t.findSeq(seq, d, request, packet) }
	if packet.Flags.IsSYNACK() {
		d, seq, request = trace.Reply, packet.Ack-1, packet.Tuple.Reverse()
		find = func() *path { return t.findAnswered(request, packet) }
	}
	p := find()
	if p == nil {
		p = t.create(seq, request, packet)
		if d == trace.Request && ev.InIndex == 0 {
			p.process = t.connects.find(ev.Netns, p.server, trace.Process{})
			t.joinLeg(p, ev)
		}
	}
	t.touch(p, request, packet)
	p.settle(ev.Netns)
	if p.isCopy(d, ev) {
		return
	}
	p.dropAt(d, ev)
	if ev.Carried.Known() {
		// A switch in a program hands the kernel what it has no flow for yet: the next one passes.
		if p.tunnelDrops++; p.tunnelDrops == 1 {
			return
		}
	}
	t.open(p, trace.SymptomDrop, d, ev)
}

// dropAt makes sure that the namespace which dropped a packet is a hop: it made
// the packet, or the packet's arrival was not seen.
func (p *path) dropAt(d trace.Direction, ev *trace.Event) {
	hops := p.hops(d)
	for i := range *hops {
		h := &(*hops)[i]
		if h.netns != ev.Netns {
			continue
		}
		if made := h.in.Index == 0 && h.out.Index == 0; made {
			h.count++
		}
		h.otherHost = false // a bridge's filter took it: it did pass here
		return
	}
	if len(*hops) >= maxHops {
		return
	}
	h := hop{netns: ev.Netns, tuple: ev.Tuple, first: ev.Time, at: ev.Time, count: 1}
	switch {
	case ev.InIndex != 0:
		h.in = ev.Device
		h.in.Index, h.port = ev.InIndex, ev.InIndex
	case isBeforeArrival(ev):
		h.in, h.port = ev.Device, ev.Device.Index
	}
	*hops = append(*hops, h)
	if d == trace.Request && len(p.request) == 1 {
		p.requests = 1
	}
}

// isBeforeArrival reports a drop by an XDP program that a driver runs: the packet
// came in, but was not received yet.
func isBeforeArrival(ev *trace.Event) bool {
	return strings.HasPrefix(ev.Symbol, "veth_xdp_rcv") || strings.HasPrefix(ev.Symbol, "veth_poll")
}

// isOwnBusiness reports drops by which TCP keeps its own house: duplicates,
// packets for closed sockets, and the SYN whose refusal the reset tells.
func isOwnBusiness(ev *trace.Event) bool {
	switch ev.Reason {
	case noSocket, "QUEUE_PURGE":
		return true
	case "", "NOT_SPECIFIED":
		return strings.HasPrefix(ev.Symbol, "tcp_") || strings.HasPrefix(ev.Symbol, "sk_stream_") ||
			strings.HasPrefix(ev.Symbol, "inet_csk_") || strings.HasPrefix(ev.Symbol, "__skb_queue_purge") ||
			strings.HasPrefix(ev.Symbol, "skb_queue_purge")
	}
	return strings.HasPrefix(ev.Reason, "TCP_")
}
