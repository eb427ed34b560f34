package correlate

import "github.com/replypath/replypath/pkg/trace"

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
	case packet.Tuple.Protocol != trace.TCP:
		if p, _ := t.findTuple(ev.Netns, packet.Tuple); p != nil {
			t.addPacketDrop(&packet, ev)
		}
	case packet.Flags.IsSYN(), packet.Flags.IsSYNACK():
		t.addHandshakePacketDrop(&packet, ev)
	default:
		t.addPacketDrop(&packet, ev)
	}
}
