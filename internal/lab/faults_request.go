package lab

import "github.com/replypath/replypath/pkg/trace"

// requestRouteLabs are requests for which a hop on their way has no route, or one that refuses them.
func requestRouteLabs(f Family) []Lab {
	server, pods := single(servers.addr(f, 20)), direct.in(f)
	lost := func(name string, t Topology, where, title, doc string, faults ...Change) Lab {
		return Lab{Name: name, Topology: t, Finding: "request-no-route", Direction: trace.Request, Where: where, Outcome: Failed, Title: title, Doc: doc, Faults: faults}
	}
	refused := func(name string, t Topology, where, title, doc string, faults ...Change) Lab {
		return Lab{Name: name, Topology: t, Finding: "request-route-rejected", Direction: trace.Request, Where: where, Outcome: Failed, Title: title, Doc: doc, Faults: faults}
	}
	patient := natTunnel(f)
	patient.Client.Timeout = neighborTimeout
	return complete([]Lab{
		lost("request-no-route", routed(f), "r1", "a router does not know the server's network",
			"r1 drops the request, and tells the client so.", deleteRoute("r1", Route{To: servers.in(f), Via: transit.addr(f, 2)})),
		lost("request-no-route", natTunnel(f), "lb", "a load balancer has no route to the pods' network",
			"What its NAT makes of the request is for another node, behind a tunnel.", deleteRoute("lb", Route{To: pods, Via: inner.addr(f, 2)})),
		lost("request-no-route", overUDP(dsr(f)), "router", "a router has lost the route for the VIP of a UDP service",
			"It drops the datagrams; the backend has the VIP, and never sees them.", deleteRoute("router", Route{To: single(vip(f)), Via: servers.addr(f, 10)})),
		refused("request-blackhole", routed(f), "r1", "a blackhole for the server on a router",
			"r1 swallows the request and says nothing; its route for the server's network is shadowed.", addRoute("r1", Route{To: server, Type: "blackhole"})),
		refused("request-unreachable", overUDP(routed(f)), "r2", "an unreachable route for the server of a UDP service on a router",
			"r2 answers with ICMP errors.", addRoute("r2", Route{To: server, Type: "unreachable"})),
		refused("underlay-blackhole", patient, "lb", "a blackhole for the other end of a tunnel",
			"The load balancer sends requests into the tunnel, and drops what the tunnel makes of them.", addRoute("lb", Route{To: single(servers.addr(f, 20)), Type: "blackhole"})),
		{Name: "healthy-aggregate", Topology: routed(f), Title: "routers with an unreachable route for what else the server's network might be part of",
			Doc: "The longer prefix is taken, and it leads on.", Setting: []Change{addRoute("r1", Route{To: f.any(), Type: "unreachable"})}},
	})
}
