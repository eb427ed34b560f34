package diagnose

import (
	"fmt"

	"github.com/replypath/replypath/pkg/trace"
)

var mtuBlackhole = Rule{
	ID:       "mtu-blackhole",
	Title:    "too big for a hop, and the ICMP that would say so was lost",
	Severity: trace.Error,
	Doc: "A packet is bigger than the MTU of the device by which a host must send it on, and may not be fragmented. The host says so with an ICMP error (\"fragmentation needed\", \"packet too big\"), and a sender that hears it sends smaller packets: " +
		"that is no fault. It is one when the error itself is dropped on its way to the sender, at the host that drops it; or when a host says it again and again for longer than 700 ms, because the sender does not listen. The handshake always passes, its packets are small. " +
		"Bridges and the far ends of cables drop what is too big for them without any error, in functions that hand packets from device to device below IP: there the device and its MTU are named. Only packets by themselves are dropped so, not those that the kernel hands over joined (GSO).",
	explain: explainTooBig,
}

func explainTooBig(c *trace.Case, s *trace.HostState) *explanation {
	if c.Symptom != trace.SymptomTooBig {
		return explainNarrow(c, s)
	}
	ev := &c.Event
	here, hop := name(c.Place), name(c.TooBigPlace)
	sender := ev.Tuple.Src.Addr()
	message, match := "fragmentation needed", "icmp type destination-unreachable icmp code frag-needed"
	if ev.Tuple.Is6() {
		message, match = "packet too big", "icmpv6 type packet-too-big"
	}
	smaller := "# " + at(c.TooBigPlace, "nft add rule inet filter forward tcp flags syn tcp option maxseg size set rt mtu") +
		"   # or let TCP agree on smaller packets there (in a table and chain of hook forward that you have)"
	if ev.Tuple.Protocol != trace.TCP && c.Path.Protocol != trace.TCP {
		smaller = "# or have the program in " + sender.String() + " send smaller datagrams, or let them be fragmented"
	}
	e := &explanation{confidence: trace.Certain, device: c.TooBig.Device.Name}
	if ev.Hook != trace.HookDrop {
		e.confidence = trace.Likely
		e.summary = fmt.Sprintf("%s goes on sending packets that are too big for %s", sender, here)
		e.cause = fmt.Sprintf("Packets %s -> %s do not fit the device by which %s must send them on. It has said so to %s more than once (ICMP %s), and bigger packets still come: the message does not arrive, or is not heeded.",
			ev.Tuple.Src, ev.Tuple.Dst, here, sender, message)
		e.fix = []string{"# let ICMP \"" + message + "\" pass on the way from " + here + " to " + sender.String(), smaller}
		e.verify = []string{at(c.Place, "ip -s link") + "   # the device with the smallest mtu on the way"}
		return e
	}
	e.summary = fmt.Sprintf("%s drops the ICMP error that says that packets are too big", here)
	e.cause = fmt.Sprintf("Packets %s -> %s do not fit a device on their way, and %s says so (ICMP %s). That message to %s is dropped in %s (%s), so the sender never sends smaller ones.",
		ev.Tuple.Src, ev.Tuple.Dst, hop, message, sender, here, dropText(ev))
	e.fault = "icmp " + here
	e.hook = ev.Hook.String()
	if !isNetfilterDrop(c) {
		e.fix = []string{"# " + fmt.Sprintf("mend what drops ICMP errors in %s (%s)", here, dropText(ev)), smaller}
		e.verify = []string{at(c.Place, "nstat -az IcmpInErrors IcmpInDestUnreachs Icmp6InPktTooBigs")}
		return e
	}
	e.fix = []string{fmt.Sprintf("# accept %s (nft) in %s, before what drops it; `nft list ruleset` there shows the rules", match, here)}
	if !blame(e, c, s) {
		e.verify = append(e.verify, at(c.Place, "nft list ruleset")+"   # what handles ICMP errors")
	}
	e.fix = append(e.fix, smaller)
	return e
}
