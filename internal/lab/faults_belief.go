package lab

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"

	"github.com/replypath/replypath/pkg/trace"
)

// beliefLabs are neighbour entries that lead to the wrong machine.
func beliefLabs(f Family) []Lab {
	var labs []Lab
	for _, over := range []func(Topology) Topology{func(t Topology) Topology { return t }, overUDP} {
		labs = append(labs, unresolvedBeliefs(f, over)...)
		labs = append(labs, attractionLabs(f, over)...)
	}
	for i := range labs {
		if !labs[i].Healthy() {
			labs[i].Outcome = Failed // IPv6 may say that it got no answer
		}
	}
	return complete(labs)
}

func unresolvedBeliefs(f Family, over func(Topology) Topology) []Lab {
	const id = "neighbor-unresolved"
	return []Lab{
		{Name: "healthy-static-neighbor", Topology: over(local(f)), Title: "neighbours that are known by hand",
			Doc: "The entries are right.", Setting: []Change{know("server", "client", servers.addr(f, 7)), know("client", "server", servers.addr(f, 20))}},
		{Name: "stale-neighbor", Topology: over(local(f)), Finding: id, Direction: trace.Reply, Where: "server",
			Title: "the server has an old MAC address of the client", Doc: "Its entry was made by hand; the bridge floods what nobody takes.",
			Faults: []Change{addNeighbor("server", "eth0", servers.addr(f, 7))}},
		{Name: "stale-neighbor", Topology: over(routed(f)), Finding: id, Direction: trace.Reply, Where: "r1",
			Title: "the client's router has an old MAC address of it", Doc: "The reply gets to the client's cable, and the client takes no notice.",
			Faults: []Change{addNeighbor("r1", "eth0", clients.addr(f, 7))}},
		{Name: "stale-neighbor-gateway", Topology: over(routed(f)), Finding: id, Direction: trace.Request, Where: "client",
			Title: "the client has an old MAC address of its router", Doc: "Its entry was made by hand, for another router.",
			Faults: []Change{addNeighbor("client", "eth0", clients.addr(f, 1))}},
		{Name: "stranger-neighbor", Topology: over(strangers(f)), Finding: id, Direction: trace.Reply, Where: "server",
			Title: "the server takes another machine for the client", Doc: "That one drops what is not for it.",
			Faults: []Change{know("server", "spare", servers.addr(f, 7))}},
	}
}

func attractionLabs(f Family, over func(Topology) Topology) []Lab {
	const which = "two machines have the client's address: which one is meant cannot be told"
	own := servers.on(f, "eth0", 7)
	return []Lab{
		{Name: "conflict-client", Topology: over(strangers(f)), Finding: "neighbor-conflict", Direction: trace.Reply, Where: "spare",
			Title: "another machine has the client's address, and gets its replies", Doc: "It refuses them.", Unforeseen: which,
			Faults: []Change{addAddress("spare", own), know("server", "spare", servers.addr(f, 7))}},
		{Name: "healthy-conflict-client", Topology: over(strangers(f)), Title: "another machine has the client's address, and nobody believes it",
			Doc: "The server's entry for the client is right.", Unforeseen: which,
			Setting: []Change{addAddress("spare", own), know("server", "client", servers.addr(f, 7)), know("client", "server", servers.addr(f, 20))}},
	}
}

// strangers is a LAN with another machine beside client and server.
//
//	client eth0 -- switch -- eth0 server
//	                      -- eth0 spare
func strangers(f Family) Topology {
	t := local(f)
	t.Name = "strangers" + f.suffix()
	t.Hosts = append(t.Hosts, Host{Name: "spare", Addresses: []Address{servers.on(f, "eth0", 21)}})
	t.Links = append(t.Links, Link{Port{"spare", "eth0"}, Port{"switch", "spare"}})
	return t
}

// know gives a host the MAC of another's eth0 for an address, for good.
func know(name, other string, a netip.Addr) Change {
	return Change{Host: name, Text: fmt.Sprintf("ip neigh replace %s lladdr MAC-OF-%s dev eth0 nud permanent", a, other), apply: func(n *Network) error {
		h, o := n.hosts[name], n.hosts[other]
		if h == nil || o == nil {
			return fmt.Errorf("no host %s or %s", name, other)
		}
		near, err := h.link("eth0")
		if err != nil {
			return err
		}
		far, err := o.link("eth0")
		if err != nil {
			return err
		}
		return wrap("set neighbour", h.nl.NeighSet(&netlink.Neigh{
			LinkIndex: near.Attrs().Index, Family: netlinkFamily(a), State: netlink.NUD_PERMANENT, IP: a.AsSlice(), HardwareAddr: far.Attrs().HardwareAddr,
		}))
	}}
}
