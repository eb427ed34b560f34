package lab

import (
	"slices"
	"time"

	"github.com/replypath/replypath/pkg/trace"
)

// shapeUDP are faults of the path's shape, met by datagrams.
func shapeUDP(f Family) []Lab {
	return slices.Concat(wrongSourceUDP(f), policyUDP(f), circleUDP(f), contestUDP(f), entryUDP(f))
}

func wrongSourceUDP(f Family) []Lab {
	const id = "reply-wrong-source"
	open := overUDP(dsr(f))
	open.Client.Open = true
	labs := []Lab{
		{Name: "own-source", Topology: overUDP(dsr(f)), Where: "backend", Title: "a UDP server that is bound to no address",
			Doc:    "The kernel gives its answers the source that their route prefers, which is not the VIP. The client's socket does not take them.",
			Faults: []Change{listenAnywhere("backend", f)}},
		{Name: "own-source-open", Topology: open, Where: "backend", Title: "a UDP server that is bound to no address, and a client that is connected to nobody",
			Doc:    "The client's socket takes the answer, its program does not, and asks again.",
			Faults: []Change{listenAnywhere("backend", f)}},
		{Name: "no-snat", Topology: overUDP(dsr(f)), Where: "lb", Title: "a load balancer rewrites the destination of datagrams, and answers go around it",
			Doc:     "The backend answers the client through the router, from its own address: nobody restores the VIP.",
			Setting: []Change{listenAnywhere("backend", f)},
			Faults:  []Change{filters("lb", "prerouting: dnat VIP:80 to backend:80", dnatUDP(f, 20, 80))}},
		{Name: "notrack", Topology: natUDP(f), Where: "lb", Title: "the load balancer does not track answers",
			Doc:    "A notrack rule exempts what comes from the backend, so that its source is not rewritten to the VIP.",
			Faults: []Change{filters("lb", "raw: ip saddr backend notrack", untracked("PREROUTING", fromAddress(servers.addr(f, 20))))}},
	}
	for i := range labs {
		labs[i].Finding, labs[i].Direction = id, trace.Reply
	}
	for i := range labs[:2] {
		labs[i].Unforeseen = "which source its program gives an answer is not known"
	}
	openHealthy := open
	openHealthy.Name = open.Name
	return append(labs,
		Lab{Name: "healthy-open", Topology: openHealthy, Title: "a client that is connected to nobody", Doc: "It takes what comes from whom it asked."},
		Lab{Name: "healthy-snat", Topology: overUDP(dsr(f)), Title: "a load balancer that rewrites destination and source of datagrams",
			Doc:     "As dsr-udp-no-snat, with masquerade: answers come back to the load balancer.",
			Setting: []Change{listenAnywhere("backend", f), filters("lb", "prerouting: dnat VIP:80 to backend:80; postrouting: masquerade", dnatUDP(f, 20, 80), masquerading())}})
}

func policyUDP(f Family) []Lab {
	labs := []Lab{
		{Name: "policy-dropped", Title: "a routing rule sends answers to a host that does not forward",
			Doc: "Table main knows the right way; the rule leads away from it.", Faults: append(away(f, 1), sysctl("uplink", forwarding(f), "0"))},
		{Name: "policy-unresolved", Title: "a routing rule sends answers to a gateway that is not there",
			Doc: "The answer waits for a MAC address on the wrong cable.", Faults: away(f, 99)},
		{Name: "policy-refused", Title: "a routing rule sends answers to a host without a way on",
			Doc: "The other host swallows them.", Faults: append(away(f, 1), addRoute("uplink", Route{To: clients.in(f), Type: "blackhole"}))},
	}
	for i := range labs {
		labs[i].Finding, labs[i].Direction, labs[i].Where, labs[i].Topology = "reply-policy-routed", trace.Reply, "backend", overUDP(multihomed(f))
	}
	labs[1].Topology.Client.Timeout = neighborTimeout
	return append(labs, Lab{Name: "healthy-policy", Topology: overUDP(multihomed(f)), Title: "answers from the VIP have a table and a cable of their own",
		Doc: "A rule sends them by the second cable, and they arrive.", Setting: away(f, 1)})
}

func circleUDP(f Family) []Lab {
	const id = "routing-loop"
	back := addRoute("r2", Route{To: single(servers.addr(f, 20)), Via: transit.addr(f, 1)})
	mute := func(host string) Change {
		return filters(host, "output: drop ICMP errors", policyAccept("OUTPUT", rule("quiet", drop(), timeExceeded(f))))
	}
	return []Lab{
		{Name: "loop", Topology: overUDP(routed(f)), Finding: id, Direction: trace.Request, Where: "r2",
			Title: "two routers send datagrams to each other", Doc: "r2 has a route for the server that leads back to r1.", Faults: []Change{back}, Outcome: Failed},
		{Name: "loop-quiet", Topology: overUDP(routed(f)), Finding: id, Direction: trace.Request, Where: "r2",
			Title: "two routers send datagrams to each other, and say nothing", Doc: "As routed-udp-loop, with ICMP time exceeded filtered.",
			Faults: []Change{back, mute("r1"), mute("r2")}},
		{Name: "loop-reply", Topology: overUDP(routed(f)), Finding: id, Direction: trace.Reply, Where: "r1",
			Title: "two routers send answers to each other", Doc: "r1 has a route for the client that leads back to r2.",
			Faults: []Change{addRoute("r1", Route{To: single(clients.addr(f, 7)), Via: transit.addr(f, 2)})}},
	}
}

func contestUDP(f Family) []Lab {
	const id = "neighbor-conflict"
	claimed := Address{Device: "eth0", Prefix: single(vip(f))}
	return []Lab{
		{Name: "healthy", Topology: overUDP(twins(f)), Title: "a VIP of a UDP service on one of two servers", Doc: "The spare one has no VIP."},
		{Name: "conflict", Topology: overUDP(twins(f)), Finding: id, Direction: trace.Request, Where: "spare", Outcome: Refused,
			Title:  "two servers have the VIP, and datagrams go to the one that does not serve it",
			Doc:    "The spare server announced the VIP last, and answers with ICMP port unreachable.",
			Faults: []Change{addAddress("spare", claimed), believe(f, "client", "spare")}},
		{Name: "conflict-silent", Topology: overUDP(twins(f)), Finding: id, Direction: trace.Request, Where: "spare",
			Title: "the wrong one of two servers that have the VIP drops datagrams",
			Doc:   "As twins-udp-conflict, with a firewall on the spare server.",
			Faults: []Change{addAddress("spare", claimed), believe(f, "client", "spare"),
				filters("spare", "input: drop udp dport 80", policyAccept("INPUT", rule("", drop(), toUDPPort(80))))}},
	}
}

// entryUDP are servers that send once more, later, by the entry that their client's question made.
func entryUDP(f Family) []Lab {
	const id = "conntrack-entry-lost"
	again := func(t Topology) Topology {
		t = lasting(t)
		t.Services = slices.Clone(t.Services)
		t.Services[0].Again = 3 * time.Second // what happens midway takes a slow machine a while
		return t
	}
	const later = "the entry is lost later"
	flushed := []Change{note("lb", "conntrack -F, before the server sends again")}
	return []Lab{
		{Name: "healthy-again", Topology: again(natUDP(f)), Title: "a UDP server that sends once more after a while", Doc: "The load balancer still knows whom the client asked."},
		{Name: "healthy-again", Topology: again(hiddenUDP(f)), Title: "a UDP server that sends once more to a client behind masquerade", Doc: "The gateway still knows whom it hides."},
		{Name: "entry-lost", Topology: again(natUDP(f)), Finding: id, Direction: trace.Reply, Where: "lb", Outcome: Broken, Unforeseen: later,
			Title:  "the load balancer forgets whom the client asked",
			Doc:    "What the server sends later reaches the client with the server's own address, and its socket does not take it.",
			Midway: []Change{flushConntrack("lb")}, Faults: flushed},
		{Name: "entry-lost-source", Topology: again(hiddenUDP(f)), Finding: id, Direction: trace.Reply, Where: "lb", Outcome: Broken, Unforeseen: later,
			Title:  "the gateway that hides the client forgets it",
			Doc:    "What the server sends later is for the gateway itself, where no socket takes it.",
			Midway: []Change{flushConntrack("lb")}, Faults: flushed},
	}
}

// hiddenUDP is a client behind masquerade that asks the server itself.
func hiddenUDP(f Family) Topology {
	t := overUDP(nat(f))
	t.Name = "hidden" + f.suffix() + "-udp"
	t.Hosts[1].Chains = []Chain{masquerading()}
	t.Hosts[2].Routes = nil
	t.Services[0].Address = anywhere(f, 80)
	t.Client.Server = addrPort(servers.addr(f, 20), 80)
	return t
}
