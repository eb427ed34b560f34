package lab

import "github.com/replypath/replypath/pkg/trace"

// programLabs are packets that BPF programs drop, at XDP and tc.
func programLabs(f Family) []Lab {
	toWeb, fromWeb := program{family: f, port: 80}, program{family: f, port: 80, source: true}
	return complete([]Lab{
		{Name: "healthy-programs", Topology: routed(f), Title: "XDP and tc programs that let the service pass",
			Doc: "They drop port 81, which nobody uses.",
			Setting: []Change{
				attachXDP("server", "eth0", false, program{family: f, port: 81}),
				attachXDP("r2", "eth1", true, program{family: f, port: 81, source: true}),
				attachTC("r1", "eth0", false, program{family: f, port: 81}),
				attachTC("server", "eth0", true, program{family: f, port: 81, source: true}),
			}},
		{Name: "xdp", Topology: routed(f), Finding: "xdp-drop", Direction: trace.Request, Where: "server",
			Title:  "an XDP program of the server drops the request",
			Doc:    "The device's driver runs it before the stack sees the packet.",
			Faults: []Change{attachXDP("server", "eth0", false, toWeb)}},
		{Name: "xdp-generic", Topology: asym(f), Finding: "xdp-drop", Direction: trace.Reply, Where: "r2",
			Title:  "an XDP program of a router drops the reply",
			Doc:    "It runs in the stack, as for drivers that have no XDP.",
			Faults: []Change{attachXDP("r2", "eth1", true, fromWeb)}},
		{Name: "tc-ingress", Topology: routed(f), Finding: "tc-drop", Direction: trace.Request, Where: "r1",
			Title:  "a tc program of a router drops the request",
			Doc:    "It is attached to clsact, where packets come in.",
			Faults: []Change{attachTC("r1", "eth0", false, toWeb)}},
		{Name: "tc-egress", Topology: dsr(f), Finding: "tc-drop", Direction: trace.Reply, Where: "backend",
			Title:  "a tc program of the backend drops the reply",
			Doc:    "It is attached to clsact, where packets leave: nothing is seen on the cable.",
			Faults: []Change{attachTC("backend", "eth0", true, fromWeb)}},
		{Name: "tc-bridge", Topology: local(f), Finding: "tc-drop", Direction: trace.Request, Where: "switch",
			Title:  "a tc program at a bridge's port drops the request",
			Doc:    "The frame is to another MAC, as all that a bridge forwards.",
			Faults: []Change{attachTC("switch", "server", true, toWeb)}},
		{Name: "xdp-bridge", Topology: local(f), Finding: "xdp-drop", Direction: trace.Reply, Where: "switch",
			Title:  "an XDP program at a bridge's port drops the reply",
			Doc:    "The frame is to another MAC, as all that a bridge forwards.",
			Faults: []Change{attachXDP("switch", "server", false, fromWeb)}},
	})
}
