package lab

import "github.com/replypath/replypath/pkg/trace"

// routeLabs are replies without a route, or with a route that refuses them.
func routeLabs(f Family) []Lab {
	return complete(append(missingRouteLabs(f), rejectedRouteLabs(f)...))
}

func missingRouteLabs(f Family) []Lab {
	const id = "reply-no-route"
	router := servers.addr(f, 1)
	labs := []Lab{
		{Name: "no-route", Topology: dsr(f), Finding: id, Direction: trace.Reply, Where: "backend",
			Title:  "the backend has no default route",
			Doc:    "The SYN reaches the listening socket, and the SYN-ACK is never built: no drop is reported anywhere.",
			Faults: []Change{deleteRoute("backend", gateway(f, router))}},
		{Name: "no-route", Topology: dsrTunnel(f), Finding: id, Direction: trace.Reply, Where: "backend",
			Title:  "the backend behind a tunnel has no default route",
			Doc:    "As dsr-no-route, with the request coming out of a VXLAN.",
			Faults: []Change{deleteRoute("backend", gateway(f, router))}},
		{Name: "no-route", Topology: routed(f), Finding: id, Direction: trace.Reply, Where: "server",
			Title:  "the server has no default route",
			Doc:    "It can talk to its own LAN only.",
			Faults: []Change{deleteRoute("server", gateway(f, router))}},
		{Name: "no-route", Topology: natTunnel(f), Finding: id, Direction: trace.Reply, Where: "node",
			Title:  "the pod's node has no route back through the tunnel",
			Doc:    "The pod's reply reaches its node, which does not know the client.",
			Faults: []Change{deleteRoute("node", Route{To: clients.in(f), Via: inner.addr(f, 1)})}},
		{Name: "no-route", Topology: nat(f), Finding: id, Direction: trace.Reply, Where: "backend",
			Title:  "the backend behind NAT has no route to the client",
			Doc:    "The load balancer rewrites the destination only, so that the backend must answer a client it has no route to.",
			Faults: []Change{deleteRoute("backend", gateway(f, router))}},
		{Name: "router-no-route", Topology: routed(f), Finding: id, Direction: trace.Reply, Where: "r2",
			Title:  "a router on the way back does not know the client's network",
			Doc:    "r2 forwards the request, and rejects the SYN-ACK for want of a route.",
			Faults: []Change{deleteRoute("r2", Route{To: clients.in(f), Via: transit.addr(f, 1)})}},
	}
	if f == IPv4 {
		labs = append(labs, Lab{Name: "no-route-rp-filter", Topology: dsr(f), Finding: id, Direction: trace.Reply, Where: "backend",
			Title: "no default route, and reverse-path filtering that reports it",
			Doc:   "The kernel drops the SYN by rp_filter, but only because there is no route back at all: that is the cause.",
			Faults: []Change{
				deleteRoute("backend", gateway(f, router)),
				sysctl("backend", "net.ipv4.conf.eth0.rp_filter", "1"),
			}})
	}
	return labs
}

func rejectedRouteLabs(f Family) []Lab {
	const id = "reply-route-rejected"
	client := single(clients.addr(f, 7))
	return []Lab{
		{Name: "blackhole", Topology: dsr(f), Finding: id, Direction: trace.Reply, Where: "backend",
			Title:  "a blackhole route for the client's network on the backend",
			Doc:    "The SYN-ACK is never built: no drop is reported anywhere.",
			Faults: []Change{addRoute("backend", Route{To: clients.in(f), Type: "blackhole"})}},
		{Name: "prohibit", Topology: dsr(f), Finding: id, Direction: trace.Reply, Where: "backend",
			Title:  "a prohibit route for the client on the backend",
			Doc:    "As a blackhole, with another error.",
			Faults: []Change{addRoute("backend", Route{To: client, Type: "prohibit"})}},
		{Name: "unreachable-router", Topology: dsr(f), Finding: id, Direction: trace.Reply, Where: "router",
			Title:  "an unreachable route for the client on the router",
			Doc:    "The router forwards the request, and answers the SYN-ACK with an ICMP error that the backend cannot use.",
			Faults: []Change{addRoute("router", Route{To: client, Type: "unreachable"})}},
		{Name: "blackhole-router", Topology: asym(f), Finding: id, Direction: trace.Reply, Where: "r2",
			Title:  "a blackhole for the client on the router of the way back",
			Doc:    "r2 swallows the SYN-ACK and says nothing.",
			Faults: []Change{addRoute("r2", Route{To: client, Type: "blackhole"})}},
		{Name: "rule-prohibit", Topology: routed(f), Finding: id, Direction: trace.Reply, Where: "server",
			Title:  "a routing rule on the server prohibits the client's network",
			Doc:    "The route is there; a policy rule refuses before it is looked up.",
			Faults: []Change{addRule("server", f, Rule{Priority: 100, To: clients.in(f), Type: "prohibit"})}},
	}
}

// reversePathLabs are packets that reverse-path filtering takes for forged. IPv6 has no such sysctl.
func reversePathLabs(f Family) []Lab {
	if f == IPv6 {
		return nil
	}
	const id = "rp-filter-drop"
	return complete([]Lab{
		{Name: "rp-filter-backend", Topology: dsrTunnel(f), Finding: id, Direction: trace.Request, Where: "backend",
			Title:  "strict reverse-path filtering on the tunnel's device",
			Doc:    "The request comes in by vx0, the route to its source leaves by eth0.",
			Faults: []Change{sysctl("backend", "net.ipv4.conf.vx0.rp_filter", "1")}},
		{Name: "rp-filter-all", Topology: dsrReturn(f), Finding: id, Direction: trace.Request, Where: "backend",
			Title:  "strict reverse-path filtering on all devices of the backend",
			Doc:    "conf/all makes it strict although the device itself says 0: the greater value counts.",
			Faults: []Change{sysctl("backend", "net.ipv4.conf.all.rp_filter", "1")}},
		{Name: "rp-filter-router", Topology: dsrReturn(f), Finding: id, Direction: trace.Reply, Where: "router",
			Title:  "strict reverse-path filtering on the router's return device",
			Doc:    "The SYN-ACK comes from the VIP by ret0, but the router's route to the VIP leaves by lan0.",
			Faults: []Change{sysctl("router", "net.ipv4.conf.ret0.rp_filter", "1")}},
	})
}
