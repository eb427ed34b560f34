package diagnose

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/replypath/replypath/pkg/trace"
)

var tunnelMismatch = Rule{
	ID:       "tunnel-mismatch",
	Title:    "the tunnel's ends do not agree (VNI)",
	Severity: trace.Error,
	Doc: "A tunnel's packet reached a host that takes none of its kind: another VNI or key, another UDP port, no such tunnel, or a tunnel to somebody else (reasons VXLAN_VNI_NOT_FOUND and VXLAN_INVALID_HDR, " +
		"NO_SOCKET on the tunnel's port, or the functions that look for a tunnel); what it carried is read from the dropped packet. Where ARP or ND has to pass the tunnel first, " +
		"the carried packet is never sent: then the next hop behind the tunnel does not answer, and the devices of both ends are compared.",
	explain: func(c *trace.Case, s *trace.HostState) *explanation {
		switch {
		case c.Symptom != trace.SymptomDrop:
			return nil
		case c.Event.Carried.Known():
			return explainTunnelDrop(c, s)
		case isNeighborDrop(&c.Event):
			return explainSilentTunnel(c, s)
		}
		return nil
	},
}

// DependsOnTunnels reports whether the cause depends on the tunnels of other
// namespaces: then HostState.FarTunnels has to be filled.
func DependsOnTunnels(c *trace.Case, s *trace.HostState) bool {
	if c.Symptom != trace.SymptomDrop {
		return false
	}
	_, ours := ownTunnel(c, s)
	return isTunnelDrop(&c.Event) || isNeighborDrop(&c.Event) && ours && s.NextHopOwner.Netns != 0
}

// isTunnelDrop reports the drop of a tunnel's packet where tunnels are looked for.
func isTunnelDrop(ev *trace.Event) bool {
	if !ev.Carried.Known() {
		return false
	}
	switch ev.Reason {
	case "VXLAN_VNI_NOT_FOUND", "VXLAN_INVALID_HDR", "NO_SOCKET", "IP_NOPROTO", "IP_TUNNEL_ECN":
		return true
	case "", "NOT_SPECIFIED", "UNHANDLED_PROTO":
		return hasPrefix(ev.Symbol, "vxlan_rcv", "geneve_", "gre_", "ipgre_", "__ipgre_", "ip6gre_", "tunnel4_", "tunnel64_", "tunnel6_", "tunnel46_", "ip_tunnel_rcv", "ip6_tnl_rcv",
			"ip4ip6_rcv", "ipip_", "ipip6_", "mplsip_", "__udp4_lib_rcv", "__udp6_lib_rcv", "udp_queue_rcv", "udpv6_queue_rcv", "ip_protocol_deliver_rcu", "ip6_protocol_deliver_rcu")
	}
	return false
}

// ownTunnel is the tunnel device by which the packet was to leave.
func ownTunnel(c *trace.Case, s *trace.HostState) (trace.Tunnel, bool) {
	for _, index := range []uint32{c.Event.Device.Index, c.Event.OutIndex, s.Onward.Device.Index} {
		for _, t := range s.Tunnels {
			if index != 0 && t.Device.Index == index {
				return t, true
			}
		}
	}
	return trace.Tunnel{}, false
}

// sameKind compares kinds as devices and as headers say them: GRE's devices have
// several names, and so have those of IP in IP.
func sameKind(a, b string) bool { return a == b || kindOf(a) == kindOf(b) }

func kindOf(kind string) string {
	switch kind {
	case "gre", "gretap", "ip6gre", "ip6gretap", "erspan", "ip6erspan":
		return "gre"
	case "ip", "ipip", "sit", "ip6tnl", "tunl":
		return "ip"
	}
	return kind
}

// idName is what a kind of tunnel calls its number.
func idName(kind string) string {
	if kindOf(kind) == "gre" {
		return "key"
	}
	return "VNI"
}

// showTunnel names a device with what its other end must agree to.
func showTunnel(t *trace.Tunnel) string {
	text := fmt.Sprintf("%s (%s", t.Device.Name, t.Kind)
	switch {
	case t.External:
		text += ", any " + idName(t.Kind)
	case kindOf(t.Kind) != "ip":
		text += fmt.Sprintf(", %s %d", idName(t.Kind), t.ID)
	}
	if t.Port != 0 {
		text += fmt.Sprintf(", UDP port %d", t.Port)
	}
	if t.Local.IsValid() {
		text += ", local " + t.Local.String()
	}
	if t.Remote.IsValid() {
		text += ", remote " + t.Remote.String()
	}
	return text + ")"
}

// recreate is the command that gives a device another number, port or end:
// VNI and port cannot be changed while it is there, those of GRE and IPIP can.
func recreate(p trace.Place, t *trace.Tunnel, id uint32, port uint16, remote netip.Addr) string {
	args := fmt.Sprintf("type %s", t.Kind)
	kind := kindOf(t.Kind)
	switch kind {
	case "vxlan", "geneve":
		args += fmt.Sprintf(" id %d dstport %d", id, port)
	case "gre":
		args += fmt.Sprintf(" key %d", id)
	}
	if t.Local.IsValid() && t.Kind != "geneve" {
		args += " local " + t.Local.String()
	}
	if remote.IsValid() {
		args += " remote " + remote.String()
	}
	dev := quote(t.Device.Name)
	if kind == "gre" || kind == "ip" {
		return at(p, "ip link set dev %s %s", dev, args) + "   # leaves its addresses and routes as they are"
	}
	return "# " + at(p, "ip link del %s", dev) + " && " + at(p, "ip link add %s %s", dev, args) + "   # with its other options; then its addresses and routes again"
}

// orElse makes a command the second choice.
func orElse(command string) string { return "# or " + strings.TrimPrefix(command, "# ") }

// showTunnels is the command that shows a device's tunnel.
func showTunnels(p trace.Place, t *trace.Tunnel) string {
	if t == nil || t.Device.Name == "" {
		return at(p, "ip -d link show")
	}
	return at(p, "ip -d link show dev %s", quote(t.Device.Name))
}

// explainTunnelDrop explains a tunnel's packet that the host it was sent to does not take.
func explainTunnelDrop(c *trace.Case, s *trace.HostState) *explanation {
	ev := &c.Event
	if !isTunnelDrop(ev) {
		return nil
	}
	in, here, from := ev.Carried, name(c.Place), ev.Tuple.Src.Addr()
	port := ev.Tuple.Dst.Port()
	what := in.Kind
	if in.Kind == "ip" {
		what = "IP-in-IP"
	}
	said := ""
	if in.Kind != "ip" {
		said = fmt.Sprintf(" with %s %d", idName(in.Kind), in.ID)
	}
	if port != 0 {
		said += fmt.Sprintf(" to UDP port %d", port)
	}
	e := &explanation{
		confidence: trace.Certain, device: ev.Device.Name, fault: fmt.Sprintf("%s %d %d from %s", in.Kind, in.ID, port, from),
		cause: fmt.Sprintf("The %s %s -> %s reached %s within a %s packet from %s%s. ", carriedName(&in), in.Tuple.Src, in.Tuple.Dst, here, what, from, said),
	}
	sender, sent := senderOf(c, s)
	if there, ok := rightEnd(c, s); ok && sent && !takesFrom(s.Tunnels, ev) {
		explainWrongRemote(e, c, &sender, &there)
		return e
	}
	own := nearest(s.Tunnels, ev)
	e.verify = []string{showTunnels(c.Place, own)}
	if own == nil {
		e.summary = fmt.Sprintf("%s has no %s tunnel that takes what %s sends to it", here, what, from)
		e.cause += fmt.Sprintf("%s has no tunnel of that kind.", here)
		e.fix = []string{"# " + at(c.Place, "ip link add %s", newTunnel(ev)) + fmt.Sprintf("   # if %s is to be the tunnel's end; else send the tunnel to its real end", here)}
		if !s.Asked() {
			e.confidence = trace.Likely
		}
		return e
	}
	e.fault = "tunnel " + own.Device.Name
	e.evidence = append(e.evidence, state(s, "%s has %s", here, showTunnel(own)))
	e.cause += fmt.Sprintf("%s has %s", here, showTunnel(own))
	switch {
	case port != 0 && own.Port != port:
		e.summary = fmt.Sprintf("%s arrives at %s on UDP port %d, and the tunnel there listens on %d", what, here, port, own.Port)
		e.cause += fmt.Sprintf(": the ports differ (%d and %d).", port, own.Port)
	case kindOf(in.Kind) != "ip" && !own.External && own.ID != in.ID:
		e.summary = fmt.Sprintf("%s arrives at %s with %s %d, and the tunnel there has %d", what, here, idName(in.Kind), in.ID, own.ID)
		e.cause += fmt.Sprintf(": the %ss differ (%d arrived, %d is configured).", idName(in.Kind), in.ID, own.ID)
	case own.Kind != "vxlan" && own.Remote.IsValid() && own.Remote != from: // VXLAN takes from anybody
		e.summary = fmt.Sprintf("%s takes this tunnel's packets from %s only, and they come from %s", here, own.Remote, from)
		e.cause += fmt.Sprintf(": its remote is %s, and the packet came from %s.", own.Remote, from)
	case own.Kind != "vxlan" && own.Local.IsValid() && own.Local != ev.Tuple.Dst.Addr():
		e.summary = fmt.Sprintf("%s takes this tunnel's packets to %s only, and they are sent to %s", here, own.Local, ev.Tuple.Dst.Addr())
		e.cause += fmt.Sprintf(": its local address is %s, and the packet was sent to %s.", own.Local, ev.Tuple.Dst.Addr())
	case !own.Up:
		e.summary = fmt.Sprintf("the tunnel %s of %s is down", own.Device.Name, here)
		e.cause += ", but it is down."
		e.fix = []string{at(c.Place, "ip link set dev %s up", quote(own.Device.Name))}
		return e
	default:
		e.confidence = trace.Likely
		e.summary = fmt.Sprintf("the tunnel %s of %s does not take the %s packets of %s", own.Device.Name, here, what, from)
		e.cause += ", which did not take it: its header has options or flags that this end does not expect."
	}
	if port == 0 {
		port = own.Port
	}
	e.fix = []string{recreate(c.Place, own, in.ID, port, from)}
	if sent {
		e.fix = append(e.fix, orElse(recreate(sender.Place, &sender.Tunnel, own.ID, own.Port, ev.Tuple.Dst.Addr())))
		e.evidence = append(e.evidence, state(s, "%s has %s", name(sender.Place), showTunnel(&sender.Tunnel)))
	}
	return e
}

// carriedName is the packet that a tunnel's packet carried.
func carriedName(in *trace.Carried) string {
	if in.Flags.IsSYN() || in.Flags.IsSYNACK() {
		return in.Flags.String()
	}
	return "packet"
}

// newTunnel writes the device that would take a packet.
func newTunnel(ev *trace.Event) string {
	local, remote := ev.Tuple.Dst.Addr(), ev.Tuple.Src.Addr()
	switch ev.Carried.Kind {
	case "vxlan":
		return fmt.Sprintf("vxlan%d type vxlan id %d dstport %d local %s remote %s", ev.Carried.ID, ev.Carried.ID, ev.Tuple.Dst.Port(), local, remote)
	case "geneve":
		return fmt.Sprintf("geneve%d type geneve id %d dstport %d remote %s", ev.Carried.ID, ev.Carried.ID, ev.Tuple.Dst.Port(), remote)
	case "gre":
		return fmt.Sprintf("gre1 type gre local %s remote %s", local, remote)
	}
	if local.Is6() {
		return fmt.Sprintf("tnl1 type ip6tnl local %s remote %s", local, remote)
	}
	return fmt.Sprintf("tnl1 type ipip local %s remote %s", local, remote)
}

// nearest is the tunnel of this host that is most likely meant for the packet:
// of its kind, and best with the same ends, number or port.
func nearest(own []trace.Tunnel, ev *trace.Event) *trace.Tunnel {
	var best *trace.Tunnel
	most := -1
	for i := range own {
		t := &own[i]
		if !sameKind(t.Kind, ev.Carried.Kind) {
			continue
		}
		fits := 0
		for _, same := range []struct {
			it     bool
			weight int
		}{
			{t.Remote == ev.Tuple.Src.Addr(), 4}, {t.External || t.ID == ev.Carried.ID, 2}, {t.Local == ev.Tuple.Dst.Addr(), 1}, {t.Port == ev.Tuple.Dst.Port(), 1},
		} {
			if same.it {
				fits += same.weight
			}
		}
		if fits > most {
			best, most = t, fits
		}
	}
	return best
}

// takesFrom reports whether this host has a tunnel of the packet's kind with its sender.
func takesFrom(own []trace.Tunnel, ev *trace.Event) bool {
	return slices.ContainsFunc(own, func(t trace.Tunnel) bool {
		return sameKind(t.Kind, ev.Carried.Kind) && (t.External || t.Remote == ev.Tuple.Src.Addr())
	})
}

// senderOf is the tunnel that the packet was sent by.
func senderOf(c *trace.Case, s *trace.HostState) (trace.FarTunnel, bool) {
	ev := &c.Event
	for _, t := range s.FarTunnels {
		if sameKind(t.Kind, ev.Carried.Kind) && (t.External || t.ID == ev.Carried.ID) && slices.Contains(t.Addrs, ev.Tuple.Src.Addr()) {
			return t, true
		}
	}
	return trace.FarTunnel{}, false
}

// rightEnd is another host's tunnel that waits for the packet's sender, and would take it.
func rightEnd(c *trace.Case, s *trace.HostState) (trace.FarTunnel, bool) {
	ev := &c.Event
	for _, t := range s.FarTunnels {
		if sameKind(t.Kind, ev.Carried.Kind) && t.ID == ev.Carried.ID && t.Remote == ev.Tuple.Src.Addr() && !slices.Contains(t.Addrs, ev.Tuple.Src.Addr()) {
			return t, true
		}
	}
	return trace.FarTunnel{}, false
}

// explainWrongRemote explains a tunnel that leads to a host which is not its other end.
func explainWrongRemote(e *explanation, c *trace.Case, sender, there *trace.FarTunnel) {
	wrong := c.Event.Tuple.Dst.Addr()
	right := there.Local
	if !right.IsValid() {
		right = farAddress(there, wrong)
	}
	e.place, e.device = sender.Place, sender.Device.Name
	e.fault = "remote of " + sender.Device.Name
	e.summary = fmt.Sprintf("the tunnel %s of %s leads to %s, and its other end is %s", sender.Device.Name, name(sender.Place), wrong, name(there.Place))
	e.cause += fmt.Sprintf("%s has no such tunnel: it is %s that has %s. So the remote of %s on %s is wrong.",
		name(c.Place), name(there.Place), showTunnel(&there.Tunnel), sender.Device.Name, name(sender.Place))
	e.fix = []string{setRemote(sender.Place, &sender.Tunnel, right)}
	e.verify = []string{showTunnels(sender.Place, &sender.Tunnel)}
}

// setRemote is the command that gives a tunnel another far end.
func setRemote(p trace.Place, t *trace.Tunnel, remote netip.Addr) string {
	if !remote.IsValid() {
		return recreate(p, t, t.ID, t.Port, remote)
	}
	args := fmt.Sprintf("ip link set dev %s type %s", quote(t.Device.Name), t.Kind)
	switch kindOf(t.Kind) {
	case "vxlan", "geneve":
		return at(p, "%s id %d remote %s", args, t.ID, remote)
	}
	if t.Local.IsValid() {
		args += " local " + t.Local.String()
	}
	return at(p, "%s remote %s", args, remote)
}

// farAddress is an address of a far end that is of the family of another.
func farAddress(t *trace.FarTunnel, like netip.Addr) netip.Addr {
	for _, a := range t.Addrs {
		if a.Is6() == like.Is6() && !a.IsLoopback() && !a.IsLinkLocalUnicast() && onSameNet(a, like) {
			return a
		}
	}
	return netip.Addr{}
}

// onSameNet takes 24 or 64 bits for a net: addresses of tunnels' ends are known without their length.
func onSameNet(a, b netip.Addr) bool {
	bits := 24
	if a.Is6() {
		bits = 64
	}
	p, err := a.Prefix(bits)
	return err == nil && p.Contains(b)
}

// explainSilentTunnel explains a next hop behind a tunnel that does not answer,
// where the devices of both ends do not agree.
func explainSilentTunnel(c *trace.Case, s *trace.HostState) *explanation {
	own, ok := ownTunnel(c, s)
	if !ok || own.External {
		return nil
	}
	i := slices.IndexFunc(s.FarTunnels, func(t trace.FarTunnel) bool {
		return t.Place.Netns == s.NextHopOwner.Netns && t.Device.Index == s.NextHopDevice.Index
	})
	if i < 0 {
		return nil
	}
	far := &s.FarTunnels[i]
	here, there := name(c.Place), name(far.Place)
	e := &explanation{
		confidence: trace.Certain, place: far.Place, device: far.Device.Name, fault: "tunnel " + far.Device.Name,
		cause:  fmt.Sprintf("%s sends to the next hop %s by %s, and %s has that address on %s. ", here, s.NextHop.Addr, showTunnel(&own), there, showTunnel(&far.Tunnel)),
		verify: []string{showTunnels(c.Place, &own), showTunnels(far.Place, &far.Tunnel)},
		evidence: []trace.Evidence{
			state(s, "%s has %s", here, showTunnel(&own)), state(s, "%s has %s", there, showTunnel(&far.Tunnel)),
			state(s, "neighbour %s on %s is %s", s.NextHop.Addr, own.Device.Name, s.NextHop.State),
		},
	}
	wrongRemote := own.Remote.IsValid() && !own.Remote.IsMulticast() && !slices.Contains(far.Addrs, own.Remote)
	switch {
	case wrongRemote:
		right := far.Local
		if !right.IsValid() {
			right = farAddress(far, own.Remote)
		}
		e.place, e.device, e.fault = c.Place, own.Device.Name, "remote of "+own.Device.Name
		e.summary = fmt.Sprintf("the tunnel %s of %s leads to %s, which is not %s", own.Device.Name, here, own.Remote, there)
		e.cause += fmt.Sprintf("But the remote %s of %s is no address of %s.", own.Remote, own.Device.Name, there)
		e.fix = []string{setRemote(c.Place, &own, right)}
	case !sameKind(own.Kind, far.Kind):
		e.summary = fmt.Sprintf("%s and %s do not agree on the kind of their tunnel", here, there)
		e.cause += "The kinds differ."
		e.fix = []string{"# make both ends of the tunnel of one kind"}
	case !far.External && own.ID != far.ID:
		e.summary = fmt.Sprintf("%s sends with %s %d, and the tunnel of %s has %d", here, idName(own.Kind), own.ID, there, far.ID)
		e.cause += fmt.Sprintf("The %ss differ, so %s drops all that %s sends.", idName(own.Kind), there, here)
	case own.Port != far.Port:
		e.summary = fmt.Sprintf("%s sends to UDP port %d, and the tunnel of %s listens on %d", here, own.Port, there, far.Port)
		e.cause += fmt.Sprintf("The ports differ, so %s drops all that %s sends.", there, here)
	default:
		return nil
	}
	if e.fix == nil {
		e.fix = []string{recreate(far.Place, &far.Tunnel, own.ID, own.Port, far.Remote),
			orElse(recreate(c.Place, &own, far.ID, far.Port, own.Remote))}
	}
	return e
}
