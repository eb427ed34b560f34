package lab

import "github.com/replypath/replypath/pkg/trace"

// healthyLabs are the twins: nothing is wrong, and some of them look as if.
func healthyLabs(f Family) []Lab {
	labs := []Lab{
		{Name: "healthy", Topology: dsr(f), Title: "direct server return on a LAN",
			Doc: "The reply takes another way than the request, as it should."},
		{Name: "healthy", Topology: dsrTunnel(f), Title: "direct server return through a tunnel",
			Doc: "The request reaches the backend by VXLAN, the reply leaves by its LAN."},
		{Name: "healthy", Topology: dsrReturn(f), Title: "direct server return over a cable of its own",
			Doc: "Request and reply use different devices on the backend and on the router."},
		{Name: "healthy", Topology: routed(f), Title: "two routers, one way", Doc: "Request and reply take the same way."},
		{Name: "healthy", Topology: asym(f), Title: "one router there, another back",
			Doc: "r1 sees only the requests, r2 only the replies."},
		{Name: "healthy", Topology: nat(f), Title: "load balancer with destination NAT", Doc: "VIP:80 becomes backend:8080."},
		{Name: "healthy", Topology: natTunnel(f), Title: "destination NAT, then a tunnel to another node",
			Doc: "VIP:80 becomes pod:8080, by VXLAN; the reply comes back by it."},
		{Name: "healthy", Topology: local(f), Title: "client and server on one LAN", Doc: "No router at all."},
		{Name: "healthy", Topology: pair(f), Title: "client and server on one cable", Doc: "Nothing between them."},
		{Name: "healthy", Topology: localVIP(f), Title: "a VIP routed to a host on the same LAN",
			Doc: "The server owns the VIP on lo; the client has a route to it."},
		{Name: "healthy-abort", Topology: aborting(local(f)), Title: "a client that ends with a reset",
			Doc: "Health checks close their connections with RST: no fault."},
		{Name: "healthy-policy-routing", Topology: dsr(f), Title: "the way back is in a table of its own",
			Doc: "The main table has no default route; a rule sends replies from the VIP to table 100, which has one.",
			Setting: []Change{
				deleteRoute("backend", gateway(f, servers.addr(f, 1))),
				addRule("backend", f, Rule{Priority: 100, From: single(vip(f)), Table: 100}),
				addRoute("backend", Route{To: f.any(), Via: servers.addr(f, 1), Table: 100}),
			}},
		{Name: "healthy-blackhole", Topology: routed(f), Title: "blackholes for what is not used",
			Doc: "Routers keep a blackhole for their aggregate; the more specific routes win.",
			Setting: []Change{
				addRoute("r1", Route{To: f.any(), Type: "blackhole"}),
				addRoute("r2", Route{To: f.any(), Type: "blackhole"}),
			}},
		{Name: "healthy-firewall", Topology: routed(f), Title: "stateful firewalls that accept the service",
			Doc: "Every chain's policy is drop; rules accept port 80 and what is established.",
			Setting: []Change{
				filters("r1", "forward: policy drop, accept established and tcp dport 80", stateful("FORWARD")),
				filters("r2", "forward: policy drop, accept established and tcp dport 80", stateful("FORWARD")),
				filters("server", "input: policy drop, accept established and tcp dport 80", stateful("INPUT")),
				filters("client", "input: policy drop, accept established", stateful("INPUT")),
			}},
		{Name: "healthy-masquerade", Topology: nat(f), Title: "load balancer with destination and source NAT",
			Doc: "The backend sees the load balancer as its client, and needs no default route.",
			Setting: []Change{
				filters("lb", "postrouting: masquerade", masquerading()),
				deleteRoute("backend", gateway(f, servers.addr(f, 1))),
			}},
	}
	if f == IPv4 {
		labs = append(labs, healthyIPv4()...)
	}
	return complete(labs)
}

// healthyIPv4 are the twins that IPv6 has no like of.
func healthyIPv4() []Lab {
	const f = IPv4
	return []Lab{
		{Name: "healthy-strict", Topology: routed(f), Title: "strict reverse-path filtering on a symmetric path",
			Doc: "rp_filter=1 on every host does no harm where the way back is the way there.",
			Setting: []Change{
				sysctl("r1", "net.ipv4.conf.all.rp_filter", "1"),
				sysctl("r2", "net.ipv4.conf.all.rp_filter", "1"),
				sysctl("server", "net.ipv4.conf.all.rp_filter", "1"),
				sysctl("client", "net.ipv4.conf.all.rp_filter", "1"),
			}},
		{Name: "healthy-loose", Topology: dsrReturn(f), Title: "loose reverse-path filtering on an asymmetric path",
			Doc: "rp_filter=2 accepts what has a route back by any device.",
			Setting: []Change{
				sysctl("router", "net.ipv4.conf.all.rp_filter", "2"),
				sysctl("backend", "net.ipv4.conf.all.rp_filter", "2"),
			}},
		{Name: "healthy-redirects", Topology: dsr(f), Title: "a load balancer that sends ICMP redirects",
			Doc: "It forwards out of the device it received on and tells the sender so: noise, not a fault.",
			Setting: []Change{
				sysctl("lb", "net.ipv4.conf.all.send_redirects", "1"),
				sysctl("lb", "net.ipv4.conf.eth0.send_redirects", "1"),
			}},
		{Name: "healthy-dual", Topology: dual(local(f)), Title: "a dual-stack listener",
			Doc: "The server listens on [::]:80 and takes IPv4 as ::ffff:a.b.c.d."},
		{Name: "healthy-localhost", Topology: localhost(f), Title: "localhost, served over one IP version",
			Doc: "The client calls the other version first, as it does for names with both, and is refused: nobody misses that."},
	}
}

// aborting makes the client end its connections with a reset.
func aborting(t Topology) Topology {
	t.Client.Abort = true
	return t
}

// localhost calls a service on loopback, after an attempt with the other IP version.
func localhost(f Family) Topology {
	t := local(f)
	other := IPv6
	if f == IPv6 {
		other = IPv4
	}
	t.Services = []Service{{Host: "server", Address: addrPort(loopback(f), 80)}}
	t.Client = Client{Host: "server", First: addrPort(loopback(other), 80), Server: addrPort(loopback(f), 80)}
	return t
}

// dual makes the services take IPv4 on an IPv6 socket.
func dual(t Topology) Topology {
	t.Services = []Service{{Host: "server", Address: anywhere(IPv6, 80), Dual: true}}
	return t
}

// stateful is a firewall that knows its business.
func stateful(hook trace.NetfilterHook) Chain {
	return policyDrop(hook,
		rule("", accept(), established()),
		rule("neighbour discovery", accept(), icmpv6()),
		rule("the service", accept(), toPort(80)),
	)
}

// masquerading is source NAT to the device's own address.
func masquerading() Chain {
	return Chain{Table: "balancer", Name: "postrouting", Hook: "POSTROUTING", Type: "nat", Priority: 100,
		Rules: []FilterRule{rule("", masquerade())}}
}
