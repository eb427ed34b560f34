package lab

import (
	"slices"
	"strings"

	"github.com/google/nftables"

	"github.com/replypath/replypath/pkg/trace"
)

// filterLabs are packets that nftables drops, at each of its hooks.
func filterLabs(f Family) []Lab {
	labs := slices.Concat(forwardFilterLabs(f), localFilterLabs(f), earlyFilterLabs(f))
	for i := range labs {
		labs[i].Finding = "netfilter-drop"
	}
	return complete(labs)
}

// forwardFilterLabs drop on the way.
func forwardFilterLabs(f Family) []Lab {
	return []Lab{
		{Name: "forward-drop", Topology: routed(f), Direction: trace.Request, Where: "r1",
			Title:  "a router's rule drops the request",
			Doc:    "A rule of FORWARD names the service's port.",
			Faults: []Change{filters("r1", "forward: tcp dport 80 drop", policyAccept("FORWARD", rule("no web", drop(), toPort(80))))}},
		{Name: "forward-policy", Topology: routed(f), Direction: trace.Reply, Where: "r2",
			Title:  "a router's firewall forgot the replies",
			Doc:    "Its policy is drop and its one rule accepts requests; nothing accepts what is established.",
			Faults: []Change{filters("r2", "forward: policy drop, accept tcp dport 80 only", policyDrop("FORWARD", rule("web", accept(), toPort(80))))}},
		{Name: "forward-chain", Topology: routed(f), Direction: trace.Request, Where: "r2",
			Title: "a rule in a chain of its own drops the request",
			Doc:   "The base chain jumps to another chain, and that one drops the client.",
			Faults: []Change{filters("r2", "forward: jump tenants; tenants: drop the client",
				Chain{Table: "filter", Name: "tenants", Rules: []FilterRule{rule("tenant 7 is suspended", drop(), fromAddress(clients.addr(f, 7)))}},
				policyAccept("FORWARD", rule("", jump("tenants"))))}},
		{Name: "reply-drop", Topology: asym(f), Direction: trace.Reply, Where: "r2",
			Title:  "the router of the way back drops the reply",
			Doc:    "A rule of FORWARD drops what comes from the service's port.",
			Faults: []Change{filters("r2", "forward: tcp sport 80 drop", policyAccept("FORWARD", rule("", drop(), fromPort(80))))}},
		{Name: "forward-drop", Topology: dsr(f), Direction: trace.Request, Where: "lb",
			Title: "the load balancer drops the service's packets",
			Doc:   "As kube-proxy does for a node without local endpoints.",
			Faults: []Change{filters("lb", "forward: drop the VIP",
				policyAccept("FORWARD", rule("default/web has no local endpoints", drop(), toAddress(vip(f)), toPort(80))))}},
		{Name: "forward-drop", Topology: nat(f), Direction: trace.Request, Where: "lb",
			Title: "the load balancer drops after destination NAT",
			Doc:   "The rule names the backend and its port, which the client has never heard of.",
			Faults: []Change{filters("lb", "forward: drop the backend's port 8080",
				policyAccept("FORWARD", rule("", drop(), toAddress(servers.addr(f, 20)), toPort(8080))))}},
	}
}

// localFilterLabs drop at client or server.
func localFilterLabs(f Family) []Lab {
	return []Lab{
		{Name: "input-policy", Topology: local(f), Direction: trace.Request, Where: "server",
			Title: "the server's firewall does not know the service",
			Doc:   "INPUT's policy is drop, and no rule accepts port 80.",
			Faults: []Change{filters("server", "input: policy drop, accept established",
				policyDrop("INPUT", rule("", accept(), established()), rule("", accept(), icmpv6())))}},
		{Name: "output-drop", Topology: local(f), Direction: trace.Reply, Where: "server",
			Title:  "the server's own rule drops its reply",
			Doc:    "A rule of OUTPUT drops what leaves from port 80.",
			Faults: []Change{filters("server", "output: tcp sport 80 drop", policyAccept("OUTPUT", rule("", drop(), fromPort(80))))}},
		{Name: "client-input-drop", Topology: local(f), Direction: trace.Reply, Where: "client",
			Title:  "the client's firewall drops the reply",
			Doc:    "INPUT's policy is drop, and nothing accepts what is established.",
			Faults: []Change{filters("client", "input: policy drop", policyDrop("INPUT", rule("", accept(), icmpv6())))}},
		{Name: "client-output-drop", Topology: local(f), Direction: trace.Request, Where: "client",
			Title:  "the client's own rule drops its request",
			Doc:    "A rule of OUTPUT drops what goes to port 80: the SYN never leaves.",
			Faults: []Change{filters("client", "output: tcp dport 80 drop", policyAccept("OUTPUT", rule("no web from here", drop(), toPort(80))))}},
	}
}

// earlyFilterLabs drop before the packet has a route.
func earlyFilterLabs(f Family) []Lab {
	raw := Chain{Table: "raw", Name: "prerouting", Hook: trace.Prerouting, Priority: -300,
		Rules: []FilterRule{rule("", drop(), toPort(80))}}
	ingress := Chain{Family: nftables.TableFamilyNetdev, Table: "edge", Name: "ingress", Hook: trace.Ingress, Device: "eth0",
		Rules: []FilterRule{rule("", drop(), toPort(80))}}
	return []Lab{
		{Name: "prerouting-drop", Topology: routed(f), Direction: trace.Request, Where: "r1",
			Title:  "a router's early rule drops the request",
			Doc:    "A rule of PREROUTING, before conntrack.",
			Faults: []Change{filters("r1", "prerouting: tcp dport 80 drop", raw)}},
		{Name: "ingress-drop", Topology: dsr(f), Direction: trace.Request, Where: "backend",
			Title:  "a device's ingress rule drops the request",
			Doc:    "A netdev table, which iptables does not show.",
			Faults: []Change{filters("backend", "ingress on eth0: tcp dport 80 drop", ingress)}},
	}
}

// policyAccept is a base chain of table filter that drops by rule.
func policyAccept(hook trace.NetfilterHook, rules ...FilterRule) Chain {
	return Chain{Table: "filter", Name: strings.ToLower(string(hook)), Hook: hook, Rules: rules}
}

// policyDrop is a base chain of table filter that drops what no rule accepts.
func policyDrop(hook trace.NetfilterHook, rules ...FilterRule) Chain {
	c := policyAccept(hook, rules...)
	c.Drop = true
	return c
}
