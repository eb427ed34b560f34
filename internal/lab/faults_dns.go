package lab

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/replypath/replypath/pkg/trace"
)

// dnsService is a pod that asks its cluster's DNS: the node gives the service's
// address to the resolver, which may ask another one.
//
//	client eth0 -- eth0 node eth1 -- eth0 resolver
//	                         eth2 -- eth0 upstream
func dnsService(f Family) Topology {
	name, resolver := "dns"+f.suffix(), addrPort(servers.addr(f, 20), 53)
	translate := Chain{
		Family: ipFamily(f), Table: "services", Name: "prerouting", Hook: "PREROUTING", Type: nftables.ChainTypeNAT, Priority: -100,
		Rules: []FilterRule{rule("dns", dnat(resolver), toAddress(vip(f)), toUDPPort(53)), rule("dns", dnat(resolver), toAddress(vip(f)), toPort(53))},
	}
	return Topology{
		Name: name, Family: f,
		Hosts: []Host{
			clientHost(f),
			{
				Name: "node", Forward: true, Chains: []Chain{translate},
				Addresses: []Address{clients.on(f, "eth0", 1), servers.on(f, "eth1", 1), direct.on(f, "eth2", 1)},
			},
			{Name: "resolver", Addresses: []Address{servers.on(f, "eth0", 20)}, Routes: []Route{gateway(f, servers.addr(f, 1))}},
			{Name: "upstream", Addresses: []Address{direct.on(f, "eth0", 53)}, Routes: []Route{gateway(f, direct.addr(f, 1))}},
		},
		Links: []Link{
			{Port{"client", "eth0"}, Port{"node", "eth0"}},
			{Port{"node", "eth1"}, Port{"resolver", "eth0"}},
			{Port{"node", "eth2"}, Port{"upstream", "eth0"}},
		},
		Services: slices.Concat(resolving("resolver", anywhere(f, 53), Resolver{}), resolving("upstream", anywhere(f, 53), Resolver{})),
		Client:   Client{Host: "client", Server: addrPort(vip(f), 53), UDP: true, Lookup: &Lookup{Names: []string{"www.lab.test."}}},
	}
}

// resolving are the services of a resolver, by UDP and TCP.
func resolving(host string, at netip.AddrPort, r Resolver) []Service {
	return []Service{{Host: host, Address: at, UDP: true, DNS: &r}, {Host: host, Address: at, DNS: &r}}
}

// looking is dnsService with another question.
func looking(f Family, l Lookup) Topology {
	t := dnsService(f)
	t.Client.Lookup = &l
	return t
}

// resolver puts another resolver in the place of a host's.
func resolver(host, text string, f Family, r Resolver) Change {
	return Change{Host: host, Text: "let the resolver " + text, apply: func(n *Network) error {
		if err := n.stopService(host); err != nil {
			return err
		}
		for _, s := range resolving(host, anywhere(f, 53), r) {
			if err := n.startService(context.Background(), s); err != nil {
				return err
			}
		}
		return nil
	}}
}

// redirected sends a host's own queries to a port of its own.
func redirected(host string, f Family, port uint16) Change {
	to := expr.Redir{RegisterProtoMin: 1}
	wire := []byte{byte(port >> 8), byte(port)}
	verdict := []expr.Any{&expr.Immediate{Register: 1, Data: wire}, &to}
	return filters(host, "output: udp dport 53 redirect to 15053", Chain{
		Family: ipFamily(f), Table: "mesh", Name: "output", Hook: "OUTPUT", Type: nftables.ChainTypeNAT, Priority: -100,
		Rules: []FilterRule{rule("dns", verdict, toUDPPort(53)), rule("dns", verdict, transportPort(unix.IPPROTO_TCP, 2, 53))},
	})
}

// proxying starts a DNS proxy on a host's port 15053.
func proxying(host string, f Family, r Resolver) Change {
	return Change{Host: host, Text: "start a DNS proxy on port 15053", apply: func(n *Network) error {
		for _, s := range resolving(host, addrPort(loopback(f), 15053), r) {
			if err := n.startService(context.Background(), s); err != nil {
				return err
			}
		}
		return nil
	}}
}

// dnsLabs are faults of DNS and what looks like them.
func dnsLabs(f Family) []Lab {
	labs := slices.Concat(healthyDNS(f), faultyDNS(f))
	if f == IPv4 {
		labs = slices.Concat(labs, healthyDNSv4(), faultyDNSv4())
	}
	labs = complete(labs)
	for i := range labs {
		labs[i].Topology.Client.Connects = 1
		if labs[i].Finding != "netfilter-drop" {
			labs[i].Unforeseen = "names are not asked for"
		}
	}
	return labs
}

func healthyDNS(f Family) []Lab {
	return []Lab{
		{Name: "healthy", Topology: looking(f, Lookup{Names: []string{"none.test.", "www.lab.test."}}), Title: "DNS through a service address",
			Doc: "The node translates the service's address; one name does not exist, the other one does."},
		{Name: "healthy-truncated", Topology: dnsService(f), Title: "an answer that does not fit into a datagram", Doc: "The client asks again by TCP, and is answered.",
			Setting: []Change{resolver("resolver", "truncate", f, Resolver{Truncate: true})}},
		{Name: "healthy-redirect", Topology: dnsService(f), Title: "DNS that is redirected to a proxy", Doc: "Rules of the client's namespace send its queries to a DNS proxy on loopback.",
			Setting: []Change{redirected("client", f, 15053), proxying("client", f, Resolver{})}},
	}
}

func faultyDNS(f Family) []Lab {
	return []Lab{
		{Name: "silent", Topology: dnsService(f), Finding: "dns-unanswered", Direction: trace.Reply, Where: "resolver",
			Title: "a resolver that answers nothing", Doc: "It reads the queries, and no packet is dropped anywhere.",
			Faults: []Change{resolver("resolver", "stay silent", f, Resolver{Silent: true})}},
		{Name: "refused", Topology: dnsService(f), Finding: "dns-error-response", Direction: trace.Reply, Where: "resolver", Outcome: Broken,
			Title: "a resolver that refuses", Doc: "It answers REFUSED, as one does that does not serve this client.",
			Faults: []Change{resolver("resolver", "refuse", f, Resolver{Rcode: dns.RcodeRefused})}},
		{Name: "late", Topology: looking(f, Lookup{Names: []string{"www.lab.test."}, Timeout: 700 * time.Millisecond}), Finding: "dns-late-reply", Direction: trace.Reply, Where: "resolver",
			Title: "a resolver that is slower than its clients are patient", Doc: "It takes two seconds, and the client waits for 0.7.",
			Faults: []Change{resolver("resolver", "take its time", f, Resolver{Delay: 2 * time.Second})}},
		{Name: "tcp-blocked", Topology: dnsService(f), Finding: "dns-tcp-fallback-blocked", Direction: trace.Request, Where: "node",
			Title: "a filter that lets DNS pass by UDP alone", Doc: "The answer does not fit into a datagram, and the node drops TCP port 53.",
			Setting: []Change{resolver("resolver", "truncate", f, Resolver{Truncate: true})},
			Faults:  []Change{filters("node", "forward: tcp dport 53 drop", policyAccept("FORWARD", rule("", drop(), toPort(53))))}},
		{Name: "search", Topology: looking(f, searchList("www.lab.test", "a.test", "b.test", "c.test", "")), Finding: "dns-search-amplification", Direction: trace.Request, Where: "client", Outcome: Connected,
			Title: "a name that the search list is tried on first", Doc: "Its dots are fewer than ndots, so three names that do not exist are asked for before it.",
			Faults: []Change{{Host: "client", Text: "resolv.conf: search a.test b.test c.test, options ndots:5", apply: func(*Network) error { return nil }}}}, // so its client asks
		{Name: "redirect-closed", Topology: dnsService(f), Finding: "redirect-target-not-listening", Direction: trace.Request, Where: "client",
			Title: "DNS that is redirected to a port where nobody listens", Doc: "The client's queries go to port 15053 of its own, and no DNS proxy is there.",
			Faults: []Change{redirected("client", f, 15053)}},
		{Name: "redirect-loop", Topology: dnsService(f), Finding: "redirect-loop", Direction: trace.Request, Where: "client", Outcome: Broken,
			Title: "a DNS proxy whose own queries are redirected to itself", Doc: "The rules of the client's namespace do not except the proxy: what it asks the service comes back to it.",
			Faults: []Change{redirected("client", f, 15053), proxying("client", f, Resolver{Forward: addrPort(vip(f), 53)})}},
		{Name: "dropped", Topology: dnsService(f), Finding: "netfilter-drop", Direction: trace.Request, Where: "node",
			Title: "a filter that drops DNS", Doc: "The query dies at the node's hook FORWARD: it is the filter that is told, not the query without an answer.",
			Faults: []Change{filters("node", "forward: udp dport 53 drop", policyAccept("FORWARD", rule("", drop(), toUDPPort(53))))}},
	}
}

// searchList is what a resolver library asks for with a search list.
func searchList(name string, domains ...string) Lookup {
	var l Lookup
	for _, domain := range domains {
		l.Names = append(l.Names, strings.TrimSuffix(name+"."+domain, ".")+".")
	}
	return l
}

func healthyDNSv4() []Lab {
	const f = IPv4
	return []Lab{
		{Name: "healthy-slow", Topology: dnsService(f), Title: "a resolver that takes its time", Doc: "It answers after 0.6 s, and the client waits for two.",
			Setting: []Change{resolver("resolver", "take its time", f, Resolver{Delay: 600 * time.Millisecond})}},
		{Name: "healthy-search", Topology: looking(f, searchList("www", "a.test", "b.test", "c.test", "lab.test")), Title: "a search list that ends well", Doc: "The fourth name of the list exists: that is what it is for."},
		{Name: "healthy-forward", Topology: dnsService(f), Title: "a resolver that asks another one", Doc: "The query that it makes is one of its own.",
			Setting: []Change{resolver("resolver", "forward", f, Resolver{Forward: addrPort(direct.addr(f, 53), 53)})}},
	}
}

func faultyDNSv4() []Lab {
	const f = IPv4
	forward := resolver("resolver", "forward", f, Resolver{Forward: addrPort(direct.addr(f, 53), 53)})
	second := Lookup{Names: []string{"www.lab.test."}, Servers: []netip.AddrPort{addrPort(direct.addr(f, 53), 53)}}
	return []Lab{
		{Name: "upstream-silent", Topology: looking(f, Lookup{Names: []string{"www.lab.test."}, Timeout: 4 * time.Second}), Finding: "dns-unanswered", Direction: trace.Reply, Where: "upstream", Outcome: Broken,
			Title: "a resolver whose upstream answers nothing", Doc: "The client gets SERVFAIL, which is not the resolver's fault.",
			Setting: []Change{forward}, Faults: []Change{resolver("upstream", "stay silent", f, Resolver{Silent: true})}},
		{Name: "upstream-servfail", Topology: dnsService(f), Finding: "dns-error-response", Direction: trace.Reply, Where: "upstream", Outcome: Broken,
			Title: "a resolver whose upstream fails", Doc: "It passes on the SERVFAIL that it got.",
			Setting: []Change{forward}, Faults: []Change{resolver("upstream", "fail", f, Resolver{Rcode: dns.RcodeServerFailure})}},
		{Name: "first-silent", Topology: looking(f, second), Finding: "dns-unanswered", Direction: trace.Reply, Where: "resolver", Outcome: Connected,
			Title: "a first server that is dead", Doc: "The second one answers, each time two seconds later.",
			Faults: []Change{resolver("resolver", "stay silent", f, Resolver{Silent: true})}},
		{Name: "tcp-closed", Topology: dnsService(f), Finding: "dns-tcp-fallback-blocked", Direction: trace.Request, Where: "resolver",
			Title: "a resolver that does not listen on TCP", Doc: "Its answer does not fit into a datagram, and the connection that is to fetch it is refused.",
			Faults: []Change{{Host: "resolver", Text: "let the resolver truncate, and not listen on TCP", apply: func(n *Network) error {
				if err := n.stopService("resolver"); err != nil {
					return err
				}
				return n.startService(context.Background(), Service{Host: "resolver", Address: anywhere(f, 53), UDP: true, DNS: &Resolver{Truncate: true}})
			}}}},
	}
}
