package lab

import (
	"context"
	"net/netip"
	"slices"

	"github.com/replypath/replypath/pkg/trace"
)

// overUDP is a topology whose service and client speak UDP. The service is bound
// to the address that the client asks, where its host has that: a UDP server that
// is bound to no address answers from the one that its route prefers.
func overUDP(t Topology) Topology {
	t.Name += "-udp"
	t.Client.UDP = true
	t.Services = slices.Clone(t.Services)
	for i := range t.Services {
		s := &t.Services[i]
		s.UDP = true
		if h, _ := t.host(s.Host); h.owns(t.Client.Server.Addr()) {
			s.Address = t.Client.Server
		}
	}
	return t
}

// owns reports whether a host has an address.
func (h Host) owns(a netip.Addr) bool {
	return slices.ContainsFunc(h.Addresses, func(own Address) bool { return own.Prefix.Addr() == a })
}

// udpLabs are the same faults, met by datagrams.
func udpLabs(f Family) []Lab {
	return slices.Concat(complete(healthyUDP(f)), complete(routesUDP(f)), complete(lostUDP(f)), complete(bufferUDP(f)), complete(shapeUDP(f)))
}

func healthyUDP(f Family) []Lab {
	return []Lab{
		{Name: "healthy", Topology: overUDP(dsr(f)), Title: "direct server return of datagrams", Doc: "The server is bound to the VIP, so that its answers come from there."},
		{Name: "healthy", Topology: overUDP(dsrTunnel(f)), Title: "direct server return of datagrams through a tunnel", Doc: "The request reaches the backend by VXLAN, the reply leaves by its LAN."},
		{Name: "healthy", Topology: overUDP(natTunnel(f)), Title: "destination NAT of datagrams, then a tunnel", Doc: "VIP:80 becomes pod:8080, by VXLAN; the answer comes back by it."},
		{Name: "healthy", Topology: overUDP(routed(f)), Title: "datagrams over two routers", Doc: "Request and reply take the same way."},
		{Name: "healthy", Topology: overUDP(asym(f)), Title: "datagrams that go by one router and come by another", Doc: "r1 sees only the requests, r2 only the replies."},
		{Name: "healthy-policy-routing", Topology: overUDP(dsr(f)), Title: "the way back of datagrams is in a table of its own",
			Doc: "A rule sends replies from the VIP to table 100, which has no route for the client; the main table has.",
			Setting: []Change{
				addRule("backend", f, Rule{Priority: 100, From: single(vip(f)), Table: 100}),
				addRoute("backend", Route{To: public.in(f), Via: servers.addr(f, 1), Table: 100}),
			}},
	}
}

// routesUDP are answers that find no route, or one that refuses them.
func routesUDP(f Family) []Lab {
	router := servers.addr(f, 1)
	labs := []Lab{
		{Name: "no-route", Topology: overUDP(dsr(f)), Finding: "reply-no-route", Direction: trace.Reply, Where: "backend",
			Title: "the backend of a UDP service has no default route", Doc: "Its answer fails in sendto(), and nothing else shows it.",
			Faults: []Change{deleteRoute("backend", gateway(f, router))}},
		{Name: "no-route", Topology: overUDP(dsrTunnel(f)), Finding: "reply-no-route", Direction: trace.Reply, Where: "backend",
			Title: "the backend of a UDP service behind a tunnel has no default route", Doc: "As dsr-udp-no-route, with the request coming out of a VXLAN.",
			Faults: []Change{deleteRoute("backend", gateway(f, router))}},
		{Name: "router-no-route", Topology: overUDP(routed(f)), Finding: "reply-no-route", Direction: trace.Reply, Where: "r2",
			Title: "a router on the way back of datagrams does not know the client's network", Doc: "r2 forwards the request, and rejects the answer.",
			Faults: []Change{deleteRoute("r2", Route{To: clients.in(f), Via: transit.addr(f, 1)})}},
		{Name: "blackhole", Topology: overUDP(dsr(f)), Finding: "reply-route-rejected", Direction: trace.Reply, Where: "backend",
			Title: "a blackhole for the clients of a UDP service", Doc: "The answer fails in sendto().",
			Faults: []Change{addRoute("backend", Route{To: clients.in(f), Type: "blackhole"})}},
		{Name: "rule-prohibit", Topology: overUDP(routed(f)), Finding: "reply-route-rejected", Direction: trace.Reply, Where: "server",
			Title: "a routing rule on a UDP server prohibits the client's network", Doc: "The answer fails in sendto() before any table but local is looked into.",
			Faults: []Change{addRule("server", f, Rule{Priority: 100, To: clients.in(f), Type: "prohibit"})}},
		{Name: "healthy-rule", Topology: overUDP(routed(f)), Title: "a UDP server whose routing rule prohibits another network", Doc: "The way to the client is looked for in table local, and found in main.",
			Setting: []Change{addRule("server", f, Rule{Priority: 100, To: transit.in(f), Type: "prohibit"})}},
	}
	if f == IPv4 {
		labs = append(labs, Lab{Name: "rp-filter-backend", Topology: overUDP(dsrTunnel(f)), Finding: "rp-filter-drop", Direction: trace.Request, Where: "backend",
			Title: "strict reverse-path filtering drops datagrams from a tunnel", Doc: "They come by vx0, and the way back to their client is eth0.",
			Faults: []Change{sysctl("backend", "net.ipv4.conf.vx0.rp_filter", "1")}})
	}
	return labs
}

// lostUDP are datagrams that a host drops or nobody takes.
func lostUDP(f Family) []Lab {
	return []Lab{
		{Name: "forward-drop", Topology: overUDP(routed(f)), Finding: "netfilter-drop", Direction: trace.Request, Where: "r1",
			Title: "a router's rule drops datagrams", Doc: "A rule of FORWARD names the service's port.",
			Faults: []Change{filters("r1", "forward: udp dport 80 drop", policyAccept("FORWARD", rule("", drop(), toUDPPort(80))))}},
		{Name: "reply-drop", Topology: overUDP(asym(f)), Finding: "netfilter-drop", Direction: trace.Reply, Where: "r2",
			Title: "the router of the way back drops the answer", Doc: "A rule of FORWARD drops what comes from the service's port.",
			Faults: []Change{filters("r2", "forward: udp sport 80 drop", policyAccept("FORWARD", rule("", drop(), fromUDPPort(80))))}},
		{Name: "forwarding", Topology: overUDP(routed(f)), Finding: "forwarding-disabled", Direction: trace.Request, Where: "r2",
			Title: "a router does not forward datagrams", Doc: "The request dies at r2.",
			Faults: []Change{sysctl("r2", forwarding(f), "0")}},
		{Name: "port-closed", Topology: overUDP(routed(f)), Finding: "port-not-listening", Direction: trace.Request, Where: "server", Outcome: Refused,
			Title: "nobody listens on the UDP port", Doc: "The server answers with ICMP port unreachable.", Faults: []Change{stopService("server")}},
		{Name: "dead-gateway", Topology: overUDP(dsr(f)), Finding: "neighbor-unresolved", Direction: trace.Reply, Where: "backend",
			Title: "the gateway of a UDP service's backend does not exist", Doc: "The answer waits for its MAC, and is dropped then.",
			Faults: []Change{replaceRoute("backend", gateway(f, servers.addr(f, 1)), gateway(f, servers.addr(f, 254)))}},
		{Name: "vni-known", Topology: overUDP(dsrTunnel(f)), Finding: "tunnel-mismatch", Direction: trace.Request, Where: "backend",
			Title:   "the tunnel of a UDP service's backend has another VNI",
			Doc:     "The datagrams are sent, and dropped with the tunnel's packets.",
			Setting: []Change{addNeighbor("lb", "vx0", inner.addr(f, 2))},
			Faults:  []Change{replaceTunnel("backend", f, 2, Tunnel{Device: "vx0", VNI: 43, Local: servers.addr(f, 20), Remote: servers.addr(f, 10)})}},
		{Name: "vip-missing", Topology: overUDP(dsr(f)), Finding: "vip-not-local", Direction: trace.Request, Where: "backend",
			Title: "the backend of a UDP service does not own the VIP", Doc: "It listens on the port, but the address is missing on its lo.",
			Setting: []Change{listenAnywhere("backend", f)},
			Faults:  []Change{deleteAddress("backend", vipOnLo(f))}},
	}
}

// bufferUDP are datagrams that come faster than the server reads them, or as fast.
func bufferUDP(f Family) []Lab {
	const id = "socket-buffer-full"
	natted := natUDP(f)
	labs := []Lab{
		{Name: "healthy-burst", Topology: overUDP(routed(f)), Title: "a burst of datagrams that the server reads", Doc: "Its buffer holds them until it does."},
		{Name: "buffer-full", Topology: overUDP(routed(f)), Finding: id, Direction: trace.Request, Where: "server",
			Title: "the server does not read its datagrams", Doc: "Its receive buffer holds two or three of them; the rest of a burst is dropped at the socket.",
			Faults: []Change{deafService("server", anywhere(f, 80))}},
		{Name: "healthy-burst", Topology: natted, Title: "a burst of datagrams through destination NAT", Doc: "The backend reads them all."},
		{Name: "buffer-full", Topology: natted, Finding: id, Direction: trace.Request, Where: "backend",
			Title: "the backend behind destination NAT does not read its datagrams", Doc: "The client asked the VIP; the full buffer is that of the backend's port 8080.",
			Faults: []Change{deafService("backend", anywhere(f, 8080))}},
	}
	for i := range labs {
		labs[i].Topology.Client.Burst = 16
		if !labs[i].Healthy() {
			labs[i].Unforeseen = "the buffer may have room by then"
		}
	}
	return labs
}

// natUDP is nat for datagrams.
func natUDP(f Family) Topology {
	t := overUDP(nat(f))
	t.Hosts[1].Chains = []Chain{dnatUDP(f, 20, 8080)}
	return t
}

// dnatUDP is dnatChain for datagrams, to a port of the server.
func dnatUDP(f Family, i byte, port uint16) Chain {
	c := dnatChain(f, i)
	c.Rules = []FilterRule{rule("service", dnat(addrPort(servers.addr(f, i), port)), toAddress(vip(f)), toUDPPort(80))}
	return c
}

// deafService puts a UDP server in the place of a host's that never reads.
func deafService(name string, listen netip.AddrPort) Change {
	return Change{Host: name, Text: "let the server stop to read", apply: func(n *Network) error {
		if err := n.stopService(name); err != nil {
			return err
		}
		return n.startService(context.Background(), Service{Host: name, Address: listen, UDP: true, Deaf: true})
	}}
}

// listenAnywhere lets a host's UDP service listen on all addresses.
func listenAnywhere(name string, f Family) Change {
	return Change{Host: name, Text: "let the server listen on all addresses", apply: func(n *Network) error {
		if err := n.stopService(name); err != nil {
			return err
		}
		return n.startService(context.Background(), Service{Host: name, Address: anywhere(f, 80), UDP: true})
	}}
}
