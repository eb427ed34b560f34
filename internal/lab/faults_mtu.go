package lab

import (
	"slices"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/replypath/replypath/pkg/trace"
)

// mtuLabs are packets that are too big for a device on their way. The host in
// front of it says so with an ICMP error, and the sender then sends smaller ones:
// if it hears of it.
func mtuLabs(f Family) []Lab {
	const id = "mtu-blackhole"
	labs := complete([]Lab{
		{Name: "healthy-mtu", Topology: bulky(routed(f)), Title: "a link with a small MTU, and ICMP errors that say so",
			Doc:     "r1 drops the first big packets and tells the client, which sends smaller ones from then on.",
			Setting: narrow("r1", "eth1", "r2", "eth0")},
		{Name: "healthy-mtu-firewall", Topology: bulky(routed(f)), Title: "a stateful firewall that lets ICMP errors in",
			Doc:     "They are related to the connection; for IPv6, ICMPv6 is let in.",
			Setting: append(narrow("r1", "eth1", "r2", "eth0"), filters("client", "input: policy drop, accept established and related", stateful("INPUT")))},
		{Name: "mtu-client-filter", Topology: bulky(routed(f)), Finding: id, Direction: trace.Request, Where: "client",
			Title:   "the client's firewall drops the ICMP errors that would tell it the MTU",
			Doc:     "The handshake passes, and then nothing that is bigger than the link between the routers.",
			Setting: narrow("r1", "eth1", "r2", "eth0"),
			Faults:  []Change{filters("client", "input: drop ICMP errors about the MTU", policyAccept("INPUT", rule("", drop(), tooBig(f))))}},
		{Name: "mtu-server-filter", Topology: bulky(asym(f)), Finding: id, Direction: trace.Reply, Where: "server",
			Title:   "the server's firewall drops the ICMP errors that would tell it the MTU",
			Doc:     "Requests pass r1, whatever their size; the way back has a narrow link.",
			Setting: []Change{setMTU("r2", "eth0", 1400)},
			Faults:  []Change{filters("server", "input: drop ICMP errors about the MTU", policyAccept("INPUT", rule("", drop(), tooBig(f))))}},
		{Name: "mtu-router-filter", Topology: bulky(routed(f)), Finding: id, Direction: trace.Request, Where: "r1",
			Title:   "the router's own rule keeps it from sending ICMP errors",
			Doc:     "It drops what is too big, and what it would say about that too.",
			Setting: narrow("r1", "eth1", "r2", "eth0"),
			Faults:  []Change{filters("r1", "output: drop ICMP errors about the MTU", policyAccept("OUTPUT", rule("", drop(), tooBig(f))))}},
	})
	for i := range labs {
		if !labs[i].Healthy() {
			labs[i].Outcome = Broken
		}
	}
	return labs
}

// silentLabs are packets that are too big for a device which is no router, and
// so says nothing: a port of a bridge, or the far end of a cable.
func silentLabs(f Family) []Lab {
	const id = "mtu-blackhole"
	labs := []Lab{
		{Name: "healthy-mtu-agreed", Topology: piecemeal(local(f), "client", "server"), Title: "a bridge with a narrow port, and hosts that know",
			Doc:     "Both hosts have the MTU of the port.",
			Setting: []Change{setMTU("switch", "server", 1400), setMTU("server", "eth0", 1400), setMTU("client", "eth0", 1400)}},
		{Name: "mtu-port", Topology: piecemeal(local(f), "client", "server"), Finding: id, Direction: trace.Request, Where: "switch", Outcome: Broken,
			Title:  "a port of a bridge is narrower than the hosts' links",
			Doc:    "A bridge sends no ICMP errors: what does not fit the port is gone.",
			Faults: []Change{setMTU("switch", "server", 1400)}},
		{Name: "mtu-port-reply", Topology: piecemeal(asym(f), "server"), Finding: id, Direction: trace.Reply, Where: "outside", Outcome: Broken,
			Title:  "a port of the bridge on the way back is narrower than the rest",
			Doc:    "r2 believes that the replies fit; the port at the other end of its cable drops them. Requests come by another port.",
			Faults: []Change{setMTU("outside", "r2", 1400)}},
		{Name: "mtu-far-end", Topology: piecemeal(routed(f), "client"), Finding: id, Direction: trace.Request, Where: "r2", Outcome: Broken,
			Title:  "one end of a cable between routers has a smaller MTU than the other",
			Doc:    "r1 believes that the packets fit; the far end drops them.",
			Faults: []Change{setMTU("r2", "eth0", 1400)}},
		{Name: "healthy-mtu-far-end", Topology: piecemeal(routed(f), "client"), Title: "one end of a cable has a smaller MTU, and packets that fit",
			Doc:     "The client's own link has that MTU, too, so that TCP agrees on smaller packets.",
			Setting: []Change{setMTU("r2", "eth0", 1400), setMTU("client", "eth0", 1400)}},
		{Name: "mtu-far-end", Topology: wide(overUDP(routed(f))), Finding: id, Direction: trace.Request, Where: "r2",
			Title:  "datagrams that one end of a cable lets out, and the other does not let in",
			Doc:    "Each is one packet, which fits all links but the end of one.",
			Faults: []Change{setMTU("r2", "eth0", 1400)}},
	}
	return complete(labs)
}

// wide is a topology whose client sends datagrams that fill a packet of 1500 bytes, or nearly.
func wide(t Topology) Topology {
	t.Client.Payload = 1449 // whole questions of 23 bytes
	return t
}

// piecemeal is bulky with hosts that send each packet by itself, as network cards
// do: the large ones that the kernel hands over fit everywhere.
func piecemeal(t Topology, names ...string) Topology {
	t = bulky(t)
	for i := range t.Hosts {
		if slices.Contains(names, t.Hosts[i].Name) {
			t.Hosts[i] = withSummer(t.Hosts[i], "eth0")
		}
	}
	return t
}

// bulky is a topology whose client sends more than a packet, and gets as much back.
func bulky(t Topology) Topology {
	t.Client.Payload = 12000
	return t
}

// narrow gives both ends of a link a small MTU.
func narrow(a, deviceA, b, deviceB string) []Change {
	return []Change{setMTU(a, deviceA, 1400), setMTU(b, deviceB, 1400)}
}

// tooBig matches "fragmentation needed" (RFC 1191), or "packet too big" (RFC 4443).
func tooBig(f Family) []expr.Any {
	protocol, message := byte(unix.IPPROTO_ICMP), []byte{3, 4}
	if f == IPv6 {
		protocol, message = unix.IPPROTO_ICMPV6, []byte{2, 0}
	}
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{protocol}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: message},
	}
}
