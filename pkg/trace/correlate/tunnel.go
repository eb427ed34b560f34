package correlate

import (
	"time"

	"github.com/replypath/replypath/pkg/trace"
)

// tunnelGrace is how long a switch in a program may need to learn where to send a
// flow's datagrams: those before it hands to the kernel, which drops them.
const tunnelGrace = 200 * time.Millisecond

// addTunnelDrop follows the drop of a tunnel's packet: what it carried is lost
// with it. The case is about the outer packet, on the path of the inner one.
func (t *Table) addTunnelDrop(ev *trace.Event) {
	if ev.OtherHost && !isBridgeDrop(ev) {
		return
	}
	packet := *ev
	packet.Tuple, packet.Flags, packet.Seq, packet.Ack = ev.Carried.Tuple, ev.Carried.Flags, ev.Carried.Seq, ev.Carried.Ack
	packet.Conntrack = trace.Conntrack{}
	switch {
	case !packet.Tuple.IsValid() || isGroup(packet.Tuple.Dst.Addr()) || packet.Flags.Has(trace.RST):
	case packet.Tuple.Protocol == trace.UDP:
		t.addTunnelledDatagramDrop(&packet, ev)
	case packet.Tuple.Protocol != trace.TCP:
	case packet.Flags.IsSYN(), packet.Flags.IsSYNACK():
		t.addHandshakePacketDrop(&packet, ev)
	default:
		t.addPacketDrop(&packet, ev)
	}
}

// addTunnelledDatagramDrop opens a case about a datagram that was dropped within
// a tunnel, if others of its flow were before.
func (t *Table) addTunnelledDatagramDrop(packet, ev *trace.Event) {
	p, d := t.datagram(packet)
	delete(t.udp.bySKB, ev.SKB) // its address is free from now on
	if p.isCopy(d, ev) {
		return
	}
	p.dropAt(d, ev)
	if p.tunnelDrops++; p.tunnelDrops == 1 {
		p.tunnelDropped = ev.Time
	}
	if ev.Time.Sub(p.tunnelDropped) >= tunnelGrace && p.mayOpen(trace.SymptomDrop, ev) {
		t.open(p, trace.SymptomDrop, d, ev)
	}
}
