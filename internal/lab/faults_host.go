package lab

import "github.com/replypath/replypath/pkg/trace"

// neighborLabs are next hops that answer neither ARP nor ND.
func neighborLabs(f Family) []Lab {
	const id = "neighbor-unresolved"
	router, dead := servers.addr(f, 1), servers.addr(f, 254)
	return complete([]Lab{
		{Name: "dead-gateway", Topology: dsr(f), Finding: id, Direction: trace.Reply, Where: "backend",
			Title:  "the backend's default gateway does not exist",
			Doc:    "The SYN-ACK waits for an ARP or ND answer for three seconds, and is dropped then.",
			Faults: []Change{replaceRoute("backend", gateway(f, router), gateway(f, dead))}},
		{Name: "dead-backend", Topology: dsr(f), Finding: id, Direction: trace.Request, Where: "lb",
			Title: "the load balancer sends to a backend that is gone",
			Doc:   "A stale endpoint: the request waits at the load balancer for a neighbour that never answers.",
			Faults: []Change{replaceRoute("lb",
				Route{To: single(vip(f)), Via: servers.addr(f, 20)}, Route{To: single(vip(f)), Via: servers.addr(f, 99)})},
			Outcome: Unreachable},
		{Name: "dead-backend", Topology: nat(f), Finding: id, Direction: trace.Request, Where: "lb",
			Title:   "destination NAT to a backend that is gone",
			Doc:     "The client asked the VIP; the neighbour that is missing is the backend behind it.",
			Faults:  []Change{deleteAddress("backend", servers.on(f, "eth0", 20))},
			Outcome: Unreachable},
		{Name: "dead-server", Topology: routed(f), Finding: id, Direction: trace.Request, Where: "r2",
			Title:   "the server is gone from its LAN",
			Doc:     "The last router asks for it in vain, and tells the client so.",
			Faults:  []Change{deleteAddress("server", servers.on(f, "eth0", 20))},
			Outcome: Unreachable},
		{Name: "dead-server", Topology: local(f), Finding: id, Direction: trace.Request, Where: "client",
			Title:   "the server is gone from the client's own LAN",
			Doc:     "The SYN never leaves the client.",
			Faults:  []Change{deleteAddress("server", servers.on(f, "eth0", 20))},
			Outcome: Unreachable},
		{Name: "healthy-isolated", Topology: asym(f), Title: "a port of the switch is isolated, and no other",
			Doc: "Isolated ports do not reach each other; the router of the way back is alone.", Setting: []Change{isolate("inside", "r2")}},
		{Name: "isolated", Topology: asym(f), Finding: id, Direction: trace.Reply, Where: "server",
			Title:   "the switch keeps the server from the router of the way back",
			Doc:     "Both ports are isolated, so that the server never finds its gateway.",
			Setting: []Change{isolate("inside", "r2")}, Faults: []Change{isolate("inside", "server")}},
	})
}

// forwardingLabs are hosts that must forward and do not.
func forwardingLabs(f Family) []Lab {
	const id = "forwarding-disabled"
	labs := []Lab{
		{Name: "forwarding", Topology: asym(f), Finding: id, Direction: trace.Reply, Where: "r2",
			Title:  "the router of the way back does not forward",
			Doc:    "The request takes r1; the SYN-ACK dies at r2.",
			Faults: []Change{sysctl("r2", forwarding(f), "0")}},
		{Name: "forwarding", Topology: routed(f), Finding: id, Direction: trace.Request, Where: "r2",
			Title:  "a router does not forward",
			Doc:    "The request dies at r2 and never reaches the server.",
			Faults: []Change{sysctl("r2", forwarding(f), "0")}},
		{Name: "forwarding", Topology: dsr(f), Finding: id, Direction: trace.Request, Where: "lb",
			Title:  "the load balancer does not forward",
			Doc:    "It has a route for the VIP to its backend, and may not use it.",
			Faults: []Change{sysctl("lb", forwarding(f), "0")}},
		{Name: "forwarding", Topology: nat(f), Finding: id, Direction: trace.Request, Where: "lb",
			Title:  "the load balancer rewrites, and does not forward",
			Doc:    "After destination NAT the packet is for another host.",
			Faults: []Change{sysctl("lb", forwarding(f), "0")}},
	}
	if f == IPv4 {
		labs = append(labs, Lab{Name: "forwarding-device", Topology: dsr(f), Finding: id, Direction: trace.Reply, Where: "router",
			Title:  "forwarding is off on one device of the router",
			Doc:    "ip_forward is 1 and requests pass; what comes in by lan0 does not.",
			Faults: []Change{sysctl("router", "net.ipv4.conf.lan0.forwarding", "0")}})
	}
	return complete(labs)
}

// addressLabs are hosts that get the VIP's packets and do not own the VIP.
func addressLabs(f Family) []Lab {
	const id = "vip-not-local"
	lost := Unreachable // IPv6: the server has no route for the VIP and says so
	if f == IPv4 {
		lost = Timeout
	}
	return complete([]Lab{
		{Name: "vip-missing", Topology: dsr(f), Finding: id, Direction: trace.Request, Where: "backend",
			Title:  "the backend does not own the VIP",
			Doc:    "It listens on the port, but the address is missing on its lo.",
			Faults: []Change{deleteAddress("backend", vipOnLo(f))}},
		{Name: "vip-missing", Topology: dsrTunnel(f), Finding: id, Direction: trace.Request, Where: "backend",
			Title:  "the backend behind the tunnel does not own the VIP",
			Doc:    "As dsr-vip-missing, with the request coming out of a VXLAN.",
			Faults: []Change{deleteAddress("backend", vipOnLo(f))}},
		{Name: "missing", Topology: localVIP(f), Finding: id, Direction: trace.Request, Where: "server",
			Title:   "a host gets the VIP's packets and has no route for them either",
			Doc:     "The client sends the VIP to the server, whose lo lacks it.",
			Faults:  []Change{deleteAddress("server", vipOnLo(f))},
			Outcome: lost},
	})
}

// listenerLabs are ports that nobody listens on.
func listenerLabs(f Family) []Lab {
	const id = "port-not-listening"
	labs := []Lab{
		{Name: "port-closed", Topology: local(f), Where: "server", Title: "nobody listens on the port",
			Doc: "The server answers the SYN with a reset.", Faults: []Change{stopService("server")}},
		{Name: "port-closed", Topology: routed(f), Where: "server", Title: "nobody listens on the port, two routers away",
			Doc: "The reset comes back through both.", Faults: []Change{stopService("server")}},
		{Name: "port-closed", Topology: dsr(f), Where: "backend", Title: "nobody listens on the VIP's port",
			Doc: "The backend owns the VIP and resets the connection.", Faults: []Change{stopService("backend")}},
		{Name: "port-closed", Topology: nat(f), Where: "backend", Title: "nobody listens behind destination NAT",
			Doc: "The client asked VIP:80; the closed port is the backend's 8080.", Faults: []Change{stopService("backend")}},
		{Name: "port-loopback", Topology: local(f), Where: "server", Title: "the server listens on loopback only",
			Doc: "The port is open, but not for anybody outside.", Faults: []Change{moveService("server", loopback(f), 80)}},
	}
	for i := range labs {
		labs[i].Finding, labs[i].Direction, labs[i].Outcome = id, trace.Request, Refused
	}
	return complete(labs)
}

// localVIP is local with a VIP: the server owns it on lo, the client has a route to it.
func localVIP(f Family) Topology {
	t := local(f)
	t.Name = "local-vip" + f.suffix()
	t.Hosts[0].Routes = []Route{{To: single(vip(f)), Via: servers.addr(f, 20)}}
	t.Hosts[2].Addresses = append(t.Hosts[2].Addresses, vipOnLo(f))
	t.Client = toVIP(f)
	return t
}
