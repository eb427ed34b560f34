package lab

// routed has two routers on the one way there and back.
//
//	client eth0 -- eth0 r1 eth1 -- eth0 r2 eth1 -- eth0 server
func routed(f Family) Topology {
	return Topology{
		Name: "routed" + f.suffix(), Family: f,
		Hosts: []Host{
			clientHost(f),
			{
				Name: "r1", Forward: true,
				Addresses: []Address{clients.on(f, "eth0", 1), transit.on(f, "eth1", 1)},
				Routes:    []Route{{To: servers.in(f), Via: transit.addr(f, 2)}},
			},
			{
				Name: "r2", Forward: true,
				Addresses: []Address{transit.on(f, "eth0", 2), servers.on(f, "eth1", 1)},
				Routes:    []Route{{To: clients.in(f), Via: transit.addr(f, 1)}},
			},
			{
				Name:      "server",
				Addresses: []Address{servers.on(f, "eth0", 20)},
				Routes:    []Route{gateway(f, servers.addr(f, 1))},
			},
		},
		Links: []Link{
			{Port{"client", "eth0"}, Port{"r1", "eth0"}},
			{Port{"r1", "eth1"}, Port{"r2", "eth0"}},
			{Port{"r2", "eth1"}, Port{"server", "eth0"}},
		},
		Services: []Service{{Host: "server", Address: anywhere(f, 80)}},
		Client:   Client{Host: "client", Server: addrPort(servers.addr(f, 20), 80)},
	}
}

// asym has two routers side by side: the request goes through r1, the reply through r2.
//
//	                        -- eth0 r1 eth1 --
//	client eth0 -- outside                      inside -- eth0 server
//	                        -- eth0 r2 eth1 --
func asym(f Family) Topology {
	router := func(name string, i byte) Host {
		return Host{
			Name: name, Forward: true,
			Addresses: []Address{clients.on(f, "eth0", i), servers.on(f, "eth1", i)},
		}
	}
	return Topology{
		Name: "asym" + f.suffix(), Family: f,
		Hosts: []Host{
			clientHost(f), {Name: "outside", Bridge: "br0"}, router("r1", 1), router("r2", 2), {Name: "inside", Bridge: "br0"},
			{
				Name:      "server",
				Addresses: []Address{servers.on(f, "eth0", 20)},
				Routes:    []Route{gateway(f, servers.addr(f, 2))},
			},
		},
		Links: []Link{
			{Port{"client", "eth0"}, Port{"outside", "client"}},
			{Port{"r1", "eth0"}, Port{"outside", "r1"}},
			{Port{"r2", "eth0"}, Port{"outside", "r2"}},
			{Port{"r1", "eth1"}, Port{"inside", "r1"}},
			{Port{"r2", "eth1"}, Port{"inside", "r2"}},
			{Port{"server", "eth0"}, Port{"inside", "server"}},
		},
		Services: []Service{{Host: "server", Address: anywhere(f, 80)}},
		Client:   Client{Host: "client", Server: addrPort(servers.addr(f, 20), 80)},
	}
}

// local is client and server on one LAN.
//
//	client eth0 -- switch -- eth0 server
func local(f Family) Topology {
	return Topology{
		Name: "local" + f.suffix(), Family: f,
		Hosts: []Host{
			{Name: "client", Addresses: []Address{servers.on(f, "eth0", 7)}},
			{Name: "switch", Bridge: "br0"},
			{Name: "server", Addresses: []Address{servers.on(f, "eth0", 20)}},
		},
		Links: []Link{
			{Port{"client", "eth0"}, Port{"switch", "client"}},
			{Port{"server", "eth0"}, Port{"switch", "server"}},
		},
		Services: []Service{{Host: "server", Address: anywhere(f, 80)}},
		Client:   Client{Host: "client", Server: addrPort(servers.addr(f, 20), 80)},
	}
}

// pair is client and server on one cable.
//
//	client eth0 -- eth0 server
func pair(f Family) Topology {
	t := local(f)
	t.Name = "pair" + f.suffix()
	t.Hosts = []Host{t.Hosts[0], t.Hosts[2]}
	t.Links = []Link{{Port{"client", "eth0"}, Port{"server", "eth0"}}}
	return t
}
