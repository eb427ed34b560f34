package diagnose

import (
	"fmt"
	"strings"
	"syscall"

	"github.com/replypath/replypath/pkg/trace"
)

var openvswitchDrop = Rule{
	ID:       "openvswitch-drop",
	Title:    "Open vSwitch's kernel datapath dropped it: a flow without an output, a daemon that does not answer, an output port that cannot send",
	Severity: trace.Error,
	Doc: "The kernel says that the module openvswitch dropped the packet: by its own reasons (OVS_DROP_*, from 6.6 on), or by the function. The datapath is then asked what it does with such a packet: " +
		"its flows that fit the packet and have no output are named, and whether a process still has the sockets open that packets without a flow are for. Kernels before 6.6 say nothing when a flow drops: there a packet that came in " +
		"at a port and was not seen again is explained by such a flow. In the plus tier the function ovs_dp_upcall tells why the daemon could not be asked, and of packets lost because its queue was full. " +
		"Which OpenFlow rule a flow was made from, the kernel does not know: the command that tells is part of the finding. Packets that a host's own sockets send into the switch are not seen to vanish before 6.6, nor is what the userspace datapath drops.",
	explain: func(c *trace.Case, s *trace.HostState) *explanation {
		switch c.Symptom {
		case trace.SymptomDrop:
			if c.Event.BySwitch() {
				return explainSwitchDrop(c, s)
			}
		case trace.SymptomSilence, trace.SymptomSwallowed:
			if len(s.Switch.Dropping) > 0 && s.Switch.Passing == 0 {
				e := explainSwitchFlow(c, s)
				if c.Symptom == trace.SymptomSilence {
					e.direction = trace.Request // it is the request that got nowhere
				}
				return e
			}
		}
		return nil
	},
}

// switchPort is the port by which a packet came to the datapath that dropped it.
func switchPort(ev *trace.Event) uint32 {
	if ev.InIndex != 0 {
		return ev.InIndex
	}
	return ev.Device.Index // that of the host itself
}

func explainSwitchDrop(c *trace.Case, s *trace.HostState) *explanation {
	ev := &c.Event
	switch reason := strings.TrimPrefix(ev.Reason, "OVS_DROP_"); {
	case reason == "LAST_ACTION", strings.HasPrefix(reason, "EXPLICIT"):
		return explainSwitchFlow(c, s)
	case hasPrefix(ev.Symbol, "ovs_dp_"):
		return explainUpcall(c, s)
	case hasPrefix(ev.Symbol, "ovs_vport_send"):
		e := switchExplanation(c, s, "output", fmt.Sprintf("its %d bytes are more than the MTU of the port that it was to leave by", ev.Length))
		e.fix = []string{fmt.Sprintf("# %s   # raise the MTU of the switch's port towards %s, or lower that of the sender's device", at(c.Place, "ip link show master ovs-system"), ev.Tuple.Dst.Addr())}
		e.verify = []string{at(c.Place, "ip -s link show master ovs-system") + "   # the port's TX errors must not grow"}
		return e
	case ev.Reason == "DEV_READY", hasPrefix(ev.Symbol, "do_output"):
		e := switchExplanation(c, s, "output", "the port that it was to leave by is gone, or has no carrier")
		e.fix = []string{fmt.Sprintf("# %s   # bring up the switch's port towards %s, or attach it again", at(c.Place, "ip link show master ovs-system"), ev.Tuple.Dst.Addr())}
		e.verify = []string{at(c.Place, "ip link show master ovs-system")}
		return e
	default:
		return explainSwitchAction(c, s, reason)
	}
}

// switchReasons are the datapath's other reasons in words (net/openvswitch/drop.h).
var switchReasons = map[string]string{
	"METER":              "a meter (rate limit) was exceeded",
	"RECURSION_LIMIT":    "it went around in the switch too often (recursion limit)",
	"DEFERRED_LIMIT":     "too many of its actions were put off (deferred action limit)",
	"CONNTRACK":          "connection tracking did not take it (a full table, or a zone's limit)",
	"FRAG_L2_TOO_LONG":   "it was to be fragmented, and its link layer header is too long",
	"FRAG_INVALID_PROTO": "it was to be fragmented, and is no IP packet",
	"IP_TTL":             "its hop limit ran out in the switch (dec_ttl)",
	"ACTION_ERROR":       "an action of its flow failed",
}

// explainSwitchAction explains a drop in the middle of a flow's actions.
func explainSwitchAction(c *trace.Case, s *trace.HostState, reason string) *explanation {
	text, known := switchReasons[reason]
	if !known {
		text = "an action of its flow failed, or the port that it was to leave by is gone"
	}
	e := switchExplanation(c, s, "action "+reason, text)
	e.fix, e.verify = traceFlow(c, s), []string{at(c.Place, "ovs-appctl dpctl/dump-flows") + "   # shows what the datapath does with this traffic"}
	if !known {
		e.confidence = trace.Likely
	}
	return e
}

// explainUpcall explains the loss of a packet that the datapath has no flow for.
func explainUpcall(c *trace.Case, s *trace.HostState) *explanation {
	errno := c.Event.Errno
	nobody := s.Switch.Deaf || errno == syscall.ECONNREFUSED || errno == syscall.ENOTCONN
	full := !nobody && (errno == syscall.EAGAIN || errno == syscall.ENOBUFS)
	why := "the datapath has no flow for it, and could not hand it to ovs-vswitchd"
	switch {
	case nobody:
		why = "the datapath has no flow for it, and nobody has the sockets open by which it asks ovs-vswitchd: the daemon does not run"
	case full:
		why = "the datapath has no flow for it, and its queue to ovs-vswitchd was full: the daemon does not keep up, or hangs"
	case errno != 0:
		why += ": " + errno.Error()
	}
	e := switchExplanation(c, s, "upcall", why)
	if !nobody && errno == 0 {
		e.confidence = trace.Likely
	}
	if errno != 0 {
		e.hook = "ovs_dp_upcall"
		e.evidence = append(e.evidence, trace.Evidence{Time: c.Event.Time, Text: fmt.Sprintf("ovs_dp_upcall returned: %v", errno)})
	}
	if s.Switch.Known {
		who := "a process has the sockets for packets without a flow open"
		if s.Switch.Deaf {
			who = "nobody has the sockets for packets without a flow open"
		}
		e.evidence = append(e.evidence, state(s, "datapath %s: %s; %d packets found no room on their way to it so far", s.Switch.Datapath, who, s.Switch.Lost))
	}
	e.fix = []string{"# systemctl restart openvswitch-switch   # or however this host runs ovs-vswitchd: where a network plugin does, its pod; its log says why it ended or hangs"}
	e.verify = []string{at(c.Place, "ovs-dpctl show") + "   # lookups: lost must not grow", "ovs-appctl version   # the daemon must answer"}
	return e
}

// explainSwitchFlow explains a drop by a flow that has no output.
func explainSwitchFlow(c *trace.Case, s *trace.HostState) *explanation {
	told := c.Symptom == trace.SymptomDrop
	why := "its flow in the datapath has no output"
	dropping := s.Switch.Dropping
	if len(dropping) == 1 {
		why = fmt.Sprintf("the datapath's flow %s has the action drop", dropping[0].Match)
	}
	// A flow is as narrow as the rules make it, down to one connection: the fault is the rule, which is not known.
	e := switchExplanation(c, s, "flow", why)
	for i := range dropping {
		f := &dropping[i]
		e.evidence = append(e.evidence, state(s, "flow of datapath %s: %s, packets:%d, actions:drop", s.Switch.Datapath, f.Match, f.Packets))
	}
	if !told && (len(dropping) != 1 || !dropping[0].Certain) {
		e.confidence = trace.Likely
	}
	e.fix, e.verify = traceFlow(c, s), []string{at(c.Place, "ovs-appctl dpctl/dump-flows") + "   # must not show actions:drop for this traffic"}
	return e
}

// switchExplanation is what all explanations have in common; fault names what has to be mended.
func switchExplanation(c *trace.Case, s *trace.HostState, fault, why string) *explanation {
	ev, here := &c.Event, name(c.Place)
	port := s.Switch.Port.Name
	if port == "" {
		port = s.In.Name
	}
	if port == "" {
		port = ev.Device.Name
	}
	return &explanation{
		confidence: trace.Certain, device: port, fault: port + " " + fault,
		summary: fmt.Sprintf("Open vSwitch of %s dropped the %s that came by %s", here, packetName(ev), port),
		cause:   fmt.Sprintf("The kernel's Open vSwitch datapath of %s dropped the %s %s -> %s: %s.", here, packetName(ev), ev.Tuple.Src, ev.Tuple.Dst, why),
	}
}

// traceFlow is the command by which Open vSwitch says which OpenFlow rules a packet meets.
func traceFlow(c *trace.Case, s *trace.HostState) []string {
	t := c.Event.Tuple
	port := quote(s.Switch.Port.Name)
	if s.Switch.Port.Name == "" {
		port = quote(c.Event.Device.Name)
	}
	protocol, source, destination := t.Protocol.String(), "nw_src", "nw_dst"
	if t.Is6() {
		protocol, source, destination = protocol+"6", "ipv6_src", "ipv6_dst"
	}
	flow := fmt.Sprintf("in_port=%s,%s,%s=%s,%s=%s,tp_src=%d,tp_dst=%d", port, protocol,
		source, t.Src.Addr(), destination, t.Dst.Addr(), t.Src.Port(), t.Dst.Port())
	command := at(c.Place, `ovs-appctl ofproto/trace "$(ovs-vsctl port-to-br %s)" %s`, port, flow)
	return []string{"# " + command + "   # names the OpenFlow rule that drops it: change it where it comes from (ovs-ofctl, or a network plugin's policy)"}
}
