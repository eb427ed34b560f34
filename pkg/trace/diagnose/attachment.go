package diagnose

import (
	"fmt"
	"slices"
	"strings"

	"github.com/replypath/replypath/pkg/trace"
)

var xdpDrop = Rule{
	ID:       "xdp-drop",
	Title:    "an XDP program dropped it: which program, where attached",
	Severity: trace.Error,
	Doc: "A packet was dropped where XDP programs run: in a driver that runs them on packet buffers (veth: function veth_xdp_rcv_skb), or in the stack for drivers that have no XDP " +
		"(reason XDP, or function do_xdp_generic). The program is the one that the device has when it is asked. A physical network card drops before there is a packet buffer, and nothing is seen of the packet at all.",
	explain: func(c *trace.Case, s *trace.HostState) *explanation {
		if c.Symptom != trace.SymptomDrop || !isXDPDrop(&c.Event) || isFloodedCopy(c, s) {
			return nil
		}
		found := attachedAt(s, trace.XDPNative, trace.XDPGeneric)
		if s.Asked() && len(found) == 0 {
			return nil // a frame that could not be handed to a program
		}
		return explainAttachment(c, found, "an XDP program")
	},
}

var tcDrop = Rule{
	ID:       "tc-drop",
	Title:    "a tc filter or program dropped it: which one, where attached",
	Severity: trace.Error,
	Doc: "The kernel says that tc dropped the packet (reasons TC_INGRESS, TC_EGRESS). The filters and programs of the device (clsact, ingress, tcx) are listed, and those that may drop are named: " +
		"BPF programs by name and id, flower, u32, matchall and their like by the action that drops and its counter. Kernels before 5.17 give no reason: there the function and the filters tell.",
	explain: func(c *trace.Case, s *trace.HostState) *explanation {
		if c.Symptom != trace.SymptomDrop || !isTCDrop(&c.Event) || isFloodedCopy(c, s) {
			return nil
		}
		found := attachedAt(s, tcPoints(&c.Event)...)
		if len(found) == 0 && !strings.HasPrefix(c.Event.Reason, "TC_") {
			return nil // the function does more than tc
		}
		return explainAttachment(c, found, "a tc filter")
	},
}

// isXDPDrop reports a drop where XDP programs run.
func isXDPDrop(ev *trace.Event) bool {
	switch ev.Reason {
	case "XDP":
		return true
	case "", "NOT_SPECIFIED":
		return hasPrefix(ev.Symbol, "veth_xdp_rcv", "veth_poll", "do_xdp_generic", "netif_receive_generic_xdp", "bpf_prog_run_generic_xdp")
	}
	return false
}

// isTCDrop reports a drop where tc's filters run.
func isTCDrop(ev *trace.Event) bool {
	switch ev.Reason {
	case "", "NOT_SPECIFIED":
		return hasPrefix(ev.Symbol, "__netif_receive_skb_core", "__dev_queue_xmit", "sch_handle_", "tcf_")
	}
	return strings.HasPrefix(ev.Reason, "TC_")
}

// tcPoints are the places of tc at which the packet can have been dropped.
func tcPoints(ev *trace.Event) []trace.AttachPoint {
	in := []trace.AttachPoint{trace.TCXIngress, trace.TCIngress}
	out := []trace.AttachPoint{trace.TCXEgress, trace.TCEgress}
	switch {
	case ev.Reason == "TC_INGRESS", hasPrefix(ev.Symbol, "__netif_receive_skb_core", "sch_handle_ingress"):
		return in
	case ev.Reason == "TC_EGRESS", hasPrefix(ev.Symbol, "__dev_queue_xmit", "sch_handle_egress"):
		return out
	}
	return append(in, out...)
}

// isFloodedCopy reports a frame to another MAC that was dropped where it came in
// at a device that is no port of a bridge: nobody misses it.
func isFloodedCopy(c *trace.Case, s *trace.HostState) bool {
	return c.Event.OtherHost && s.In.Index != 0 && s.In.Index == attachedDevice(&c.Event)
}

// attachedDevice is the device whose programs saw the packet.
func attachedDevice(ev *trace.Event) uint32 {
	for _, index := range []uint32{ev.Device.Index, ev.OutIndex, ev.InIndex} {
		if index != 0 {
			return index
		}
	}
	return 0
}

// attachedAt returns what may drop at some points: of filters with counters only
// those that have dropped, where any has.
func attachedAt(s *trace.HostState, points ...trace.AttachPoint) []trace.Attachment {
	var all, counted []trace.Attachment
	for _, a := range s.Attachments {
		if !slices.Contains(points, a.Point) {
			continue
		}
		all = append(all, a)
		if !a.Counted || a.Dropped > 0 {
			counted = append(counted, a)
		}
	}
	if len(counted) > 0 {
		return counted
	}
	return all
}

func explainAttachment(c *trace.Case, found []trace.Attachment, what string) *explanation {
	ev, here := &c.Event, name(c.Place)
	dev := ev.Device.Name
	if len(found) > 0 {
		dev = found[0].Device.Name
	}
	packet := fmt.Sprintf("%s %s -> %s", packetName(ev), ev.Tuple.Src, ev.Tuple.Dst)
	e := &explanation{
		confidence: trace.Certain, device: dev, fault: dev + " " + what,
		summary: fmt.Sprintf("%s on %s of %s dropped the %s", what, dev, here, packetName(ev)),
		verify:  []string{at(c.Place, "bpftool net show dev %s", quote(dev)), at(c.Place, "ip -d link show dev %s", quote(dev))},
	}
	if len(found) > 0 {
		e.verify = []string{showAttachments(c.Place, &found[0])}
	}
	names := make([]string, len(found))
	for i := range found {
		names[i] = showAttachment(&found[i])
		e.fix = append(e.fix, detach(c.Place, &found[i])+"   # if this traffic is meant to pass; or mend it, so that it lets the traffic pass")
		if a := &found[i]; a.Counted {
			e.evidence = append(e.evidence, trace.Evidence{Time: ev.Time, Text: fmt.Sprintf("%s has dropped %d packets", names[i], a.Dropped)})
		}
	}
	switch len(found) {
	case 0:
		e.confidence = trace.Likely
		e.cause = fmt.Sprintf("%s on %s of %s dropped the %s. Which one could not be read, or it is gone by now.", capital(what), dev, here, packet)
		e.fix = []string{"# " + e.verify[0] + "   # names what is attached: let it pass this traffic, or take it away"}
	case 1:
		a := &found[0]
		e.fault = dev + " " + names[0]
		e.summary = fmt.Sprintf("%s on %s of %s dropped the %s", showShortAttachment(a), dev, here, packetName(ev))
		e.cause = fmt.Sprintf("%s dropped the %s.", capital(names[0]), packet)
		if c.Place.Host || c.Place.Name != "" || c.Place.PID != 0 {
			break
		}
		e.confidence = min(e.confidence, trace.Likely)
	default:
		e.confidence = trace.Likely
		e.cause = fmt.Sprintf("One of these dropped the %s: %s. Which one cannot be told from outside.", packet, strings.Join(names, "; "))
		for i := range e.fix {
			e.fix[i] = "# " + e.fix[i]
		}
	}
	return e
}

// showShortAttachment names a program or filter in a few words.
func showShortAttachment(a *trace.Attachment) string {
	kind := string(a.Point)
	if a.Point == trace.XDPNative || a.Point == trace.XDPGeneric {
		kind = "XDP"
	}
	if a.Program != 0 {
		return fmt.Sprintf("%s program %s (id %d)", kind, printable(a.Name), a.Program)
	}
	return fmt.Sprintf("%s filter %s (pref %d)", kind, a.Kind, a.Priority)
}

// showAttachment names a program or filter with all that is known of it.
func showAttachment(a *trace.Attachment) string {
	var b strings.Builder
	switch {
	case a.Program == 0:
		fmt.Fprintf(&b, "the %s filter pref %d handle %#x of kind %s with action %s drop", a.Point, a.Priority, a.Handle, a.Kind, a.Action)
	default:
		fmt.Fprintf(&b, "the BPF program %s (id %d", printable(a.Name), a.Program)
		if a.Tag != "" {
			fmt.Fprintf(&b, ", tag %s", a.Tag)
		}
		b.WriteString(")")
	}
	fmt.Fprintf(&b, ", attached at %s of %s", a.Point, a.Device.Name)
	switch {
	case a.Link != 0:
		fmt.Fprintf(&b, " by BPF link %d", a.Link)
	case a.Program != 0 && a.Priority != 0:
		fmt.Fprintf(&b, " as filter pref %d handle %#x", a.Priority, a.Handle)
	}
	return b.String()
}

// tcSide is how tc(8) calls a point.
func tcSide(p trace.AttachPoint) string {
	if p == trace.TCIngress {
		return "ingress"
	}
	return "egress"
}

// detach is the command that takes a program or filter away.
func detach(p trace.Place, a *trace.Attachment) string {
	dev := quote(a.Device.Name)
	switch {
	case a.Link != 0:
		return at(p, "bpftool link detach id %d", a.Link)
	case a.Point == trace.XDPNative:
		return at(p, "ip link set dev %s xdpdrv off", dev)
	case a.Point == trace.XDPGeneric:
		return at(p, "ip link set dev %s xdpgeneric off", dev)
	case a.Kind == "":
		return at(p, "bpftool net detach %s id %d dev %s", strings.ReplaceAll(string(a.Point), " ", "_"), a.Program, dev)
	}
	chain := ""
	if a.Chain != 0 {
		chain = fmt.Sprintf(" chain %d", a.Chain)
	}
	return at(p, "tc filter del dev %s %s%s pref %d protocol %s handle %s %s", dev, tcSide(a.Point), chain, a.Priority, showProtocol(a.Protocol), showHandle(a), a.Kind)
}

// showHandle writes a filter's handle as tc(8) reads it for its kind.
func showHandle(a *trace.Attachment) string {
	if a.Kind == "u32" {
		return fmt.Sprintf("%x:%x:%x", a.Handle>>20, a.Handle>>12&0xff, a.Handle&0xfff)
	}
	return fmt.Sprintf("%#x", a.Handle)
}

// showProtocol writes a filter's protocol as tc(8) reads it (include/uapi/linux/if_ether.h).
func showProtocol(p uint16) string {
	switch p {
	case 0x0003:
		return "all"
	case 0x0800:
		return "ip"
	case 0x86dd:
		return "ipv6"
	case 0x8100:
		return "802.1Q"
	}
	return fmt.Sprintf("%#x", p)
}

// showAttachments is the command that shows what is attached there.
func showAttachments(p trace.Place, a *trace.Attachment) string {
	dev := quote(a.Device.Name)
	switch a.Point {
	case trace.XDPNative, trace.XDPGeneric:
		return at(p, "ip -d link show dev %s", dev) + "   # must not show prog/xdp, or another"
	case trace.TCXIngress, trace.TCXEgress:
		return at(p, "bpftool net show dev %s", dev)
	}
	return at(p, "tc -s filter show dev %s %s", dev, tcSide(a.Point))
}
