package diagnose

import (
	"fmt"

	"github.com/replypath/replypath/pkg/trace"
)

// vlanHeader is how much more than its MTU a device is handed all the same
// (VLAN_HLEN in __is_skb_forwardable, include/linux/netdevice.h).
const vlanHeader = 4

// isOversizeDrop reports a drop where packets are handed from device to device
// below IP (a bridge to its port, one end of a veth to the other, a macvlan): what
// is too big there is gone without a word, and without a reason.
func isOversizeDrop(ev *trace.Event) bool {
	switch ev.Reason {
	case "", "NOT_SPECIFIED", "PKT_TOO_BIG":
		if ev.OtherHost && hasPrefix(ev.Symbol, "ip6_fragment", "ip_fragment", "ip_do_fragment") {
			return true // a bridge that asks netfilter for IP tries to fragment for its port
		}
		return hasPrefix(ev.Symbol, "__dev_forward_skb", "____dev_forward_skb", "dev_forward_skb", "br_dev_queue_push_xmit", "br_nf_dev_queue_xmit", "br_forward_finish", "veth_xmit")
	}
	return false
}

// DependsOnNarrow reports whether the cause depends on the MTU of the device that
// the packet was handed to: then HostState.Narrow has to be filled.
func DependsOnNarrow(c *trace.Case) bool {
	return c.Symptom == trace.SymptomDrop && isOversizeDrop(&c.Event) && c.Event.Device.Index != 0 && c.Event.Length != 0
}

// TooBigFor reports whether a packet that is a number of bytes long, from its IP
// header on, is dropped by a device with an MTU.
func TooBigFor(mtu int, length uint32) bool { return mtu > 0 && int(length) > mtu+vlanHeader }

// explainNarrow tells of a packet that a device which is no router dropped for its size.
func explainNarrow(c *trace.Case, s *trace.HostState) *explanation {
	n, ev := &s.Narrow, &c.Event
	if !DependsOnNarrow(c) || n.Place.Netns == 0 || !TooBigFor(n.MTU, ev.Length) {
		return nil
	}
	here, size := name(n.Place), int(ev.Length)
	e := &explanation{
		confidence: trace.Certain, place: n.Place, device: n.Device.Name,
		fault:   fmt.Sprintf("mtu of %s", n.Device.Name),
		summary: fmt.Sprintf("%s of %s takes packets of %d bytes at most, and drops bigger ones without a word", n.Device.Name, here, n.MTU),
		cause: fmt.Sprintf("A packet %s -> %s of %d bytes was to pass %s of %s, whose MTU is %d. Below IP nobody sends an ICMP error, so the sender never learns that it is too big.",
			ev.Tuple.Src, ev.Tuple.Dst, size, n.Device.Name, here, n.MTU),
		verify:   []string{at(n.Place, "ip -s link show dev %s", quote(n.Device.Name)) + "   # mtu, and that the dropped packets do not grow"},
		evidence: []trace.Evidence{state(s, "%s of %s has an MTU of %d; the packet has %d bytes", n.Device.Name, here, n.MTU, size)},
	}
	if n.Sender.Index != 0 {
		e.cause += fmt.Sprintf(" The other end of the cable, %s of %s, has an MTU of %d and so sends what this end does not take.", n.Sender.Name, name(n.SenderPlace), n.SenderMTU)
	}
	raise := at(n.Place, "ip link set dev %s mtu %d", quote(n.Device.Name), max(size, n.SenderMTU))
	lower := fmt.Sprintf("# or give the hosts on both sides an MTU of %d: ip link set dev DEVICE mtu %d", n.MTU, n.MTU)
	if trace.IsTunnel(n.Kind) {
		// What it wraps must fit the network below, too.
		raise, lower = fmt.Sprintf("# give the hosts on both sides an MTU of %d, which fits the tunnel: ip link set dev DEVICE mtu %d", n.MTU, n.MTU),
			"# or, if the network below the tunnel carries that much more: "+raise
	}
	e.fix = []string{raise, lower}
	return e
}
