package lab

import (
	"slices"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/replypath/replypath/pkg/trace"
)

// shapeLabs are faults that follow from the shape of the path, not from a packet that somebody drops.
func shapeLabs(f Family) []Lab {
	return complete(slices.Concat(wrongSourceLabs(f), policyLabs(f), circleLabs(f), contestLabs(f), queueLabs(f), entryLabs(f)))
}

func wrongSourceLabs(f Family) []Lab {
	const id = "reply-wrong-source"
	backend := servers.addr(f, 20)
	return []Lab{
		{Name: "no-snat", Topology: dsr(f), Finding: id, Direction: trace.Reply, Where: "lb",
			Title:  "a load balancer rewrites the destination, and replies go around it",
			Doc:    "The backend answers the client through the router, from its own address: nobody restores the VIP.",
			Faults: []Change{filters("lb", "prerouting: dnat VIP:80 to backend:80", translation(f, 20, 80))}},
		{Name: "healthy-snat", Topology: dsr(f), Title: "a load balancer that rewrites destination and source",
			Doc:     "As dsr-no-snat, with masquerade: replies come back to the load balancer.",
			Setting: []Change{filters("lb", "prerouting: dnat VIP:80 to backend:80; postrouting: masquerade", translation(f, 20, 80), masquerading())}},
		{Name: "own-source", Topology: dsr(f), Finding: id, Direction: trace.Reply, Where: "backend",
			Title: "the backend answers from its own address instead of the VIP's",
			Doc:   "Direct server return, with a rule on the backend that rewrites the source of replies.",
			Faults: []Change{filters("backend", "postrouting: ip saddr VIP ip saddr set backend",
				Chain{Family: ipFamily(f), Table: "rewrite", Name: "out", Hook: "POSTROUTING", Priority: 300,
					Rules: []FilterRule{rule("", setSource(backend.AsSlice()), fromAddress(vip(f)))}})}},
		{Name: "notrack", Topology: nat(f), Finding: id, Direction: trace.Reply, Where: "lb",
			Title:  "the load balancer does not track replies",
			Doc:    "A notrack rule exempts what comes from the backend, so that its source is not rewritten to the VIP.",
			Faults: []Change{filters("lb", "raw: ip saddr backend notrack", untracked("PREROUTING", fromAddress(backend)))}},
		{Name: "masquerade", Topology: asym(f), Finding: id, Direction: trace.Reply, Where: "r2", Outcome: Broken,
			Title:  "the router of the way back hides what follows the SYN-ACK",
			Doc:    "It masquerades, but lets the SYN-ACK pass, whose SYN it has not seen; the server's data comes from r2's own address, and the client refuses it.",
			Faults: []Change{filters("r2", "postrouting: masquerade", masquerading())}},
		{Name: "untracked-snat", Topology: dsr(f), Finding: id, Direction: trace.Reply, Where: "backend", Outcome: Broken,
			Title:  "a backend that masquerades, and does not track requests",
			Doc:    "The SYN-ACK is INVALID to it, which NAT leaves alone; with the data a connection begins, which it hides behind its own address.",
			Faults: []Change{filters("backend", "raw: ip daddr VIP notrack; postrouting: masquerade", untracked("PREROUTING", toAddress(vip(f))), masquerading())}},
		{Name: "healthy-untracked", Topology: dsr(f), Title: "a backend that masquerades, and tracks neither requests nor replies",
			Doc: "NAT leaves alone what is untracked.",
			Setting: []Change{filters("backend", "raw: ip daddr VIP notrack; ip saddr VIP notrack; postrouting: masquerade",
				untracked("PREROUTING", toAddress(vip(f))), untracked("OUTPUT", fromAddress(vip(f))), masquerading())}},
		{Name: "healthy-masquerade", Topology: routed(f), Title: "a router that masquerades, and sees both directions",
			Doc: "Replies are of connections that it knows.", Setting: []Change{filters("r2", "postrouting: masquerade", masquerading())}},
		{Name: "healthy-notrack", Topology: dsr(f), Title: "direct server return without connection tracking",
			Doc: "Nobody translates, so nobody needs to track.",
			Setting: []Change{filters("lb", "raw: notrack",
				Chain{Table: "raw", Name: "early", Hook: "PREROUTING", Priority: -300, Rules: []FilterRule{rule("", []expr.Any{&expr.Notrack{}})}})}},
	}
}

// untracked exempts packets from connection tracking.
func untracked(hook trace.NetfilterHook, match []expr.Any) Chain {
	return Chain{Table: "raw", Name: "early" + string(hook), Hook: hook, Priority: -300, Rules: []FilterRule{rule("", []expr.Any{&expr.Notrack{}}, match)}}
}

// translation is dnatChain to another port.
func translation(f Family, i byte, port uint16) Chain {
	c := dnatChain(f, i)
	c.Rules = []FilterRule{rule("service", dnat(addrPort(servers.addr(f, i), port)), toAddress(vip(f)), toPort(80))}
	return c
}

// multihomed is dsr with a second cable of the backend, to a host that leads to the router too.
//
//	router ret0 -- eth1 uplink eth0 -- eth1 backend
func multihomed(f Family) Topology {
	t := dsr(f)
	t.Name = "multihomed" + f.suffix()
	router, backend := &t.Hosts[1], &t.Hosts[4]
	router.Addresses = append(router.Addresses, inner.on(f, "ret0", 1))
	backend.Addresses = append(backend.Addresses, direct.on(f, "eth1", 2))
	t.Hosts = append(t.Hosts, Host{
		Name: "uplink", Forward: true,
		Addresses: []Address{direct.on(f, "eth0", 1), inner.on(f, "eth1", 2)},
		Routes:    []Route{gateway(f, inner.addr(f, 1))},
	})
	t.Links = append(t.Links, Link{Port{"uplink", "eth0"}, Port{"backend", "eth1"}}, Link{Port{"router", "ret0"}, Port{"uplink", "eth1"}})
	return t
}

// away sends the backend's replies from the VIP into table 100, to a gateway on eth1.
func away(f Family, gateway byte) []Change {
	return []Change{
		addRule("backend", f, Rule{Priority: 100, From: single(vip(f)), Table: 100}),
		addRoute("backend", Route{To: f.any(), Via: direct.addr(f, gateway), Table: 100}),
	}
}

func policyLabs(f Family) []Lab {
	const id = "reply-policy-routed"
	fault := func(name, title, doc string, faults ...Change) Lab {
		return Lab{Name: name, Topology: multihomed(f), Finding: id, Direction: trace.Reply, Where: "backend", Title: title, Doc: doc, Faults: faults}
	}
	labs := []Lab{
		{Name: "healthy", Topology: multihomed(f), Title: "a backend with two cables", Doc: "Replies leave by the first."},
		{Name: "healthy-policy", Topology: multihomed(f), Title: "replies from the VIP have a table and a cable of their own",
			Doc: "A rule sends them by the second cable, and they arrive.", Setting: away(f, 1)},
		fault("policy-dropped", "a routing rule sends replies to a host that does not forward",
			"Table main knows the right way; the rule leads away from it.", append(away(f, 1), sysctl("uplink", forwarding(f), "0"))...),
		fault("policy-unresolved", "a routing rule sends replies to a gateway that is not there",
			"The SYN-ACK waits for a MAC address on the wrong cable.", away(f, 99)...),
		fault("policy-refused", "a routing rule sends replies to a host without a way on",
			"The other host swallows them.", append(away(f, 1), addRoute("uplink", Route{To: clients.in(f), Type: "blackhole"}))...),
	}
	labs[3].Topology.Client.Timeout = neighborTimeout
	return labs
}

func circleLabs(f Family) []Lab {
	const id = "routing-loop"
	server, client := servers.addr(f, 20), clients.addr(f, 7)
	back := addRoute("r2", Route{To: single(server), Via: transit.addr(f, 1)})
	mute := func(host string) Change {
		return filters(host, "output: drop ICMP errors", policyAccept("OUTPUT", rule("quiet", drop(), timeExceeded(f))))
	}
	return []Lab{
		{Name: "loop", Topology: routed(f), Finding: id, Direction: trace.Request, Where: "r2",
			Title: "two routers send the request to each other", Doc: "r2 has a route for the server that leads back to r1.",
			Faults: []Change{back}, Outcome: Failed},
		{Name: "loop-quiet", Topology: routed(f), Finding: id, Direction: trace.Request, Where: "r2",
			Title: "two routers send the request to each other, and say nothing", Doc: "As routed-loop, with ICMP time exceeded filtered.",
			Faults: []Change{back, mute("r1"), mute("r2")}},
		{Name: "loop-default", Topology: routed(f), Finding: id, Direction: trace.Request, Where: "r2",
			Title: "a router has lost the server's network", Doc: "Its default route leads back to where the request came from.",
			Faults: []Change{addRoute("r2", gateway(f, transit.addr(f, 1))), deleteAddress("r2", servers.on(f, "eth1", 1))}, Outcome: Failed},
		{Name: "loop-reply", Topology: routed(f), Finding: id, Direction: trace.Reply, Where: "r1",
			Title: "two routers send the reply to each other", Doc: "r1 has a route for the client that leads back to r2.",
			Faults: []Change{addRoute("r1", Route{To: single(client), Via: transit.addr(f, 2)})}},
	}
}

// timeExceeded matches the ICMP error that says that a packet's hops ran out.
func timeExceeded(f Family) []expr.Any {
	protocol, kind := byte(unix.IPPROTO_ICMP), byte(11)
	if f == IPv6 {
		protocol, kind = unix.IPPROTO_ICMPV6, 3
	}
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{protocol}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{kind}},
	}
}

// setSource rewrites the source address of each packet, without connection tracking.
func setSource(a []byte) []expr.Any {
	write := &expr.Payload{
		OperationType: expr.PayloadWrite, SourceRegister: 1, Base: expr.PayloadBaseNetworkHeader,
		Offset: 12, Len: uint32(len(a)), CsumType: expr.CsumTypeInet, CsumOffset: 10, CsumFlags: unix.NFT_PAYLOAD_L4CSUM_PSEUDOHDR,
	}
	if len(a) == 16 {
		write.Offset, write.CsumType, write.CsumOffset = 8, expr.CsumTypeNone, 0
	}
	return []expr.Any{&expr.Immediate{Register: 1, Data: a}, write}
}

// twins is a LAN on which two servers may have the VIP.
//
//	client eth0 -- switch -- eth0 server
//	                      -- eth0 spare
func twins(f Family) Topology {
	t := local(f)
	t.Name = "twins" + f.suffix()
	t.Hosts[0].Routes = []Route{{To: public.in(f), Device: "eth0"}}
	for i := range t.Hosts {
		if t.Hosts[i].Name == "server" {
			t.Hosts[i].Addresses = append(t.Hosts[i].Addresses, Address{Device: "eth0", Prefix: single(vip(f))})
			t.Hosts[i].Routes = nil
		}
	}
	t.Hosts = append(t.Hosts, Host{Name: "spare", Addresses: []Address{servers.on(f, "eth0", 21)}})
	t.Links = append(t.Links, Link{Port{"spare", "eth0"}, Port{"switch", "spare"}})
	t.Client = toVIP(f)
	return t
}

func contestLabs(f Family) []Lab {
	const id = "neighbor-conflict"
	claimed := Address{Device: "eth0", Prefix: single(vip(f))}
	return []Lab{
		{Name: "healthy", Topology: twins(f), Title: "a VIP on one of two servers", Doc: "The spare one has no VIP."},
		{Name: "healthy-hidden", Topology: twins(f), Title: "a VIP on lo of the spare server",
			Doc:     "It does not answer for it on the LAN (arp_ignore).",
			Setting: []Change{sysctl("spare", "net.ipv4.conf.all.arp_ignore", "1"), addAddress("spare", vipOnLo(f))}},
		{Name: "conflict", Topology: twins(f), Finding: id, Direction: trace.Request, Where: "spare", Outcome: Refused,
			Title:  "two servers have the VIP, and the client believes the one that does not serve it",
			Doc:    "The spare server announced the VIP last, and refuses connections.",
			Faults: []Change{addAddress("spare", claimed), believe(f, "client", "spare")}},
		{Name: "conflict-silent", Topology: twins(f), Finding: id, Direction: trace.Request, Where: "spare",
			Title: "the wrong one of two servers that have the VIP stays silent",
			Doc:   "As twins-conflict, with a firewall on the spare server.",
			Faults: []Change{addAddress("spare", claimed), believe(f, "client", "spare"),
				filters("spare", "input: drop tcp dport 80", policyAccept("INPUT", rule("", drop(), toPort(80))))}},
	}
}

func queueLabs(f Family) []Lab {
	const id = "accept-queue-full"
	return []Lab{
		{Name: "queue-full", Topology: local(f), Finding: id, Direction: trace.Request, Where: "server",
			Title: "the server does not accept connections", Doc: "Its queue is full; the kernel drops further SYNs without a word.",
			Faults: []Change{stuckService(f, "server", 80)}},
		{Name: "queue-full", Topology: nat(f), Finding: id, Direction: trace.Request, Where: "backend",
			Title: "the backend behind destination NAT does not accept connections", Doc: "Its queue is full.",
			Faults: []Change{stuckService(f, "backend", 8080)}},
	}
}

func entryLabs(f Family) []Lab {
	const id = "conntrack-entry-lost"
	flush := flushConntrack("lb")
	strict := sysctl("lb", "net.netfilter.nf_conntrack_tcp_loose", "0")
	owned := addAddress("lb", vipOnLo(f))
	return []Lab{
		{Name: "entry-lost", Topology: lasting(nat(f)), Finding: id, Direction: trace.Request, Where: "lb", Outcome: Broken,
			Unforeseen: "the entry is lost later",
			Title:      "the load balancer forgets a live connection", Doc: "What comes after is for the load balancer itself, which knows no such connection.",
			Setting: []Change{strict, owned}, Midway: []Change{flush}, Faults: []Change{note("lb", "conntrack -F, while connections live")}},
		{Name: "entry-lost-forward", Topology: lasting(nat(f)), Finding: id, Direction: trace.Request, Where: "lb", Outcome: Broken,
			Unforeseen: "the entry is lost later",
			Title:      "the load balancer forgets a live connection to an address that it does not have", Doc: "What comes after keeps the VIP, to which the load balancer has no route.",
			Setting: []Change{strict}, Midway: []Change{flush}, Faults: []Change{note("lb", "conntrack -F, while connections live")}},
		{Name: "healthy-flush", Topology: lasting(nat(f)), Title: "the load balancer forgets a live connection, and picks it up again",
			Doc: "With nf_conntrack_tcp_loose the next packet of the client makes the same entry anew.", Midway: []Change{flush}},
	}
}

// lasting makes the client use its connections twice.
func lasting(t Topology) Topology {
	t.Client.Lines = 2
	return t
}
