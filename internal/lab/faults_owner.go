package lab

import "github.com/replypath/replypath/pkg/trace"

// lostVIPLabs are hosts that have lost the VIP, and forward: they send its packets
// on, by their default route, instead of dropping them.
func lostVIPLabs(f Family) []Lab {
	const id = "vip-not-local"
	forward := sysctl("backend", forwarding(f), "1")
	elsewhere := addNeighbor("backend", "eth1", direct.addr(f, 9))
	lost := deleteAddress("backend", vipOnLo(f))
	return complete([]Lab{
		{Name: "healthy-forwarding", Topology: dsr(f), Title: "a backend that forwards, and owns the VIP", Doc: "What it owns it does not send on.", Setting: []Change{forward}},
		{Name: "vip-sent-back", Topology: dsr(f), Finding: id, Direction: trace.Request, Where: "backend", Outcome: Failed,
			Title: "a backend that forwards does not own the VIP", Doc: "It sends the request to its default gateway, which sends it to the load balancer again.",
			Setting: []Change{forward}, Faults: []Change{lost}},
		{Name: "vip-sent-back", Topology: dsrTunnel(f), Finding: id, Direction: trace.Request, Where: "backend", Outcome: Failed,
			Title: "a backend behind a tunnel forwards and does not own the VIP", Doc: "What comes out of the tunnel goes to the default gateway, and round again.",
			Setting: []Change{forward}, Faults: []Change{lost}},
		{Name: "vip-sent-away", Topology: upstream(f), Finding: id, Direction: trace.Request, Where: "backend",
			Title: "a backend that forwards sends the VIP's packets to its uplink", Doc: "Its default route leads to a network where nobody is seen to take them.",
			Setting: []Change{forward, elsewhere}, Faults: []Change{lost}},
		{Name: "vip-sent-away", Topology: overUDP(upstream(f)), Finding: id, Direction: trace.Request, Where: "backend",
			Title: "a backend that forwards sends the VIP's datagrams to its uplink", Doc: "Its default route leads to a network where nobody is seen to take them.",
			Setting: []Change{forward, elsewhere, listenAnywhere("backend", f)}, Faults: []Change{lost}},
		{Name: "vip-sent-away", Topology: chain(f), Finding: id, Direction: trace.Request, Where: "server",
			Title: "a server that forwards sends the VIP's packets to its uplink", Doc: "One router leads the VIP to it; its own default route leads on.",
			Setting: []Change{sysctl("server", forwarding(f), "1"), addNeighbor("server", "eth1", direct.addr(f, 9))}, Faults: []Change{deleteAddress("server", vipOnLo(f))}},
		{Name: "vip-refused", Topology: upstream(f), Finding: id, Direction: trace.Request, Where: "backend", Outcome: Failed,
			Title: "a backend that forwards sends the VIP's packets to a router that has no way for them", Doc: "The drop is seen there; the address is missing at the backend.",
			Setting: []Change{forward, replaceRoute("backend", gateway(f, direct.addr(f, 9)), gateway(f, direct.addr(f, 1)))},
			Faults:  []Change{lost}},
		{Name: "healthy", Topology: upstream(f), Title: "a backend with a default route to elsewhere", Doc: "It owns the VIP, and has a route to the clients.", Setting: []Change{forward}},
		{Name: "healthy", Topology: overUDP(upstream(f)), Title: "a UDP backend with a default route to elsewhere", Doc: "It owns the VIP, and has a route to the clients.",
			Setting: []Change{forward}},
		{Name: "healthy", Topology: chain(f), Title: "a server that forwards, and owns the VIP", Doc: "Its default route leads on; what it owns it does not send on.",
			Setting: []Change{sysctl("server", forwarding(f), "1")}},
		{Name: "healthy-listening-router", Topology: listening(routed(f)), Title: "routers that serve the same port themselves", Doc: "They rightly send on what is for the server."},
	})
}

// upstream is dsr with a second cable of the backend, that its default route leads
// to: to number 9, which everybody takes for a machine that is not seen here.
//
//	uplink eth0 -- eth1 backend
func upstream(f Family) Topology {
	t := dsr(f)
	t.Name = "upstream" + f.suffix()
	backend := &t.Hosts[4]
	backend.Addresses = append(backend.Addresses, direct.on(f, "eth1", 2))
	backend.Routes = []Route{{To: clients.in(f), Via: servers.addr(f, 1)}, gateway(f, direct.addr(f, 9))}
	t.Hosts = append(t.Hosts, Host{Name: "uplink", Forward: true, Addresses: []Address{direct.on(f, "eth0", 1)}})
	t.Links = append(t.Links, Link{Port{"uplink", "eth0"}, Port{"backend", "eth1"}})
	return t
}

// chain is a router that leads the VIP to a server with an uplink of its own.
//
//	client eth0 -- eth0 router eth1 -- eth0 server eth1 -- eth0 uplink
func chain(f Family) Topology {
	return Topology{
		Name: "chain" + f.suffix(), Family: f,
		Hosts: []Host{
			clientHost(f),
			{Name: "router", Forward: true, Addresses: []Address{clients.on(f, "eth0", 1), servers.on(f, "eth1", 1)}, Routes: []Route{{To: single(vip(f)), Via: servers.addr(f, 20)}}},
			{Name: "server", Addresses: []Address{servers.on(f, "eth0", 20), direct.on(f, "eth1", 2), vipOnLo(f)},
				Routes: []Route{{To: clients.in(f), Via: servers.addr(f, 1)}, gateway(f, direct.addr(f, 9))}},
			{Name: "uplink", Forward: true, Addresses: []Address{direct.on(f, "eth0", 1)}},
		},
		Links: []Link{
			{Port{"client", "eth0"}, Port{"router", "eth0"}},
			{Port{"router", "eth1"}, Port{"server", "eth0"}},
			{Port{"uplink", "eth0"}, Port{"server", "eth1"}},
		},
		Services: []Service{{Host: "server", Address: anywhere(f, 80)}},
		Client:   toVIP(f),
	}
}

// listening makes routers serve the service's port, too.
func listening(t Topology) Topology {
	s := t.Services[0]
	for _, router := range []string{"r1", "r2"} {
		s.Host = router
		t.Services = append(t.Services, s)
	}
	return t
}
