package lab

import "github.com/replypath/replypath/pkg/trace"

// trackingLabs are stateful filters that see one direction only.
func trackingLabs(f Family) []Lab {
	const id = "conntrack-invalid-drop"
	noInvalid := rule("no invalid packets", drop(), invalid())
	return complete([]Lab{
		{Name: "healthy-invalid", Topology: routed(f), Title: "firewalls that drop INVALID packets, on the one way there and back",
			Doc: "They see both directions, so nothing of the service is INVALID.",
			Setting: []Change{
				filters("r1", "forward: ct state invalid drop", policyAccept("FORWARD", noInvalid)),
				filters("r2", "forward: ct state invalid drop", policyAccept("FORWARD", noInvalid)),
			}},
		{Name: "healthy-invalid", Topology: asym(f), Title: "a firewall that sees replies only, and knows it",
			Doc: "r2 lets the service's replies pass before it drops what is INVALID.",
			Setting: []Change{
				filters("r2", "forward: tcp sport 80 accept; ct state invalid drop", policyAccept("FORWARD", rule("", accept(), fromPort(80)), noInvalid)),
			}},
		{Name: "invalid", Topology: asym(f), Finding: id, Direction: trace.Reply, Where: "r2",
			Title:  "the router of the way back calls the reply INVALID",
			Doc:    "The request went through r1, so that r2 knows no connection for the SYN-ACK.",
			Faults: []Change{filters("r2", "forward: ct state invalid drop", policyAccept("FORWARD", noInvalid))}},
		{Name: "invalid-policy", Topology: asym(f), Finding: id, Direction: trace.Reply, Where: "r2",
			Title: "the policy of the router of the way back drops what it knows no connection for",
			Doc:   "Its rules accept the service's requests and what is established; the SYN-ACK is neither.",
			Faults: []Change{filters("r2", "forward: policy drop, accept established and tcp dport 80",
				policyDrop("FORWARD", rule("", accept(), established()), rule("", accept(), icmpv6()), rule("", accept(), toPort(80))))}},
		{Name: "invalid", Topology: dsr(f), Finding: id, Direction: trace.Request, Where: "lb", Outcome: Broken,
			Title:  "the load balancer's firewall does not know of direct server return",
			Doc:    "It sees the SYN and never the SYN-ACK, so the client's ACK is INVALID to it: the connection is made, and carries nothing.",
			Faults: []Change{filters("lb", "forward: ct state invalid drop", policyAccept("FORWARD", noInvalid))}},
	})
}
