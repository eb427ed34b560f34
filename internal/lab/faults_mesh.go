package lab

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/replypath/replypath/pkg/trace"
)

// What check reply cannot know of these labs: it asks about one answering host.
const proxied = "what a proxy makes of a connection is asked with validate redirect"

// meshLabs are transparent proxies.
func meshLabs(f Family) []Lab {
	labs := slices.Concat(healthyMeshes(f), pastProxy(f), lostInProxy(f))
	for i := range labs {
		l := &labs[i]
		if !l.Healthy() {
			l.Where, l.Direction = "pod", trace.Request
			if l.Finding == "reply-wrong-source" {
				l.Direction = trace.Reply
			}
			foreseen := l.Topology.Client.Host == "client" && l.Name != "no-tproxy" && (l.Finding == "redirect-target-not-listening" || l.Finding == "route-localnet-disabled")
			if !foreseen {
				l.Unforeseen = proxied
			}
		}
	}
	return complete(labs)
}

// sound is a topology's pod with a mesh's rules and its proxy.
func sound(f Family, r redirection) []Change {
	return []Change{redirects("pod", f, r), runProxy("pod", r.proxy)}
}

func healthyMeshes(f Family) []Lab {
	k := kuma(f, "iptables-nft")
	labs := []Lab{
		{Name: "healthy", Topology: meshIn(f), Title: "a call into a mesh",
			Doc: "Kuma's rules redirect it to the proxy, which goes on to the application from an address of lo.", Setting: sound(f, k)},
		{Name: "healthy", Topology: meshOut(f), Title: "a call out of a mesh",
			Doc: "Kuma's rules redirect it to the proxy, which goes on to the server.", Setting: sound(f, k)},
		{Name: "healthy-sidecar", Topology: meshIn(f), Title: "a call to a pod whose proxy is nobody's",
			Doc: "Rules in nft's own language, other ports and another user than a known mesh's.", Setting: sound(f, sidecar)},
		{Name: "healthy-port", Topology: meshOut(f), Title: "a server on a port that a mesh's proxy may have",
			Doc: "No rule redirects anything: it is no proxy.", Setting: []Change{runProxy("pod", Proxy{Outbound: 15001})}},
	}
	if f == IPv4 {
		labs = append(labs,
			Lab{Name: "healthy-ambient", Topology: meshOut(f), Title: "a call out of a mesh without sidecars", Doc: "The proxy runs as root, and rules tell it by the mark of its packets.",
				Setting: sound(f, ambient)},
			Lab{Name: "healthy", Topology: meshDNS(f), Title: "DNS that a mesh answers", Doc: "Kuma's rules redirect what is sent to the name server.", Setting: sound(f, k)})
	}
	return append(labs, Lab{Name: "healthy-tproxy", Topology: meshIn(f), Title: "a call into a mesh by TPROXY",
		Doc: "Istio's rules of table mangle hand it to the proxy, which calls the application as the client; no address is changed.", Setting: append(sound(f, istioTProxy), byMark(f, 1337)...)},
		Lab{Name: "healthy-tproxy", Topology: meshOut(f), Title: "a call out of a mesh by TPROXY", Doc: "It is marked, routed to lo by that, and handed over there; no address is changed.",
			Unforeseen: "the mark that rules will give the request is not known", Setting: append(sound(f, byMarks), byMark(f, 42)...)})
}

// byMark routes to lo what is marked for TPROXY.
func byMark(f Family, mark uint32) []Change {
	return []Change{addRule("pod", f, Rule{Priority: 100, Table: 133, Mark: mark}), addRoute("pod", Route{To: f.any(), Device: "lo", Type: "local", Table: 133})}
}

// pastProxy are connections that succeed, past the proxy.
func pastProxy(f Family) []Lab {
	k, legacy := kuma(f, "iptables-nft"), kuma(f, "iptables-legacy")
	const id = "redirect-missing"
	labs := []Lab{
		{Name: "no-rules", Topology: meshIn(f), Finding: id, Outcome: Connected, Title: "the rules of a mesh were never written",
			Doc: "The proxy listens; the client talks to the application itself.", Faults: []Change{runProxy("pod", k.proxy)}},
		{Name: "no-jump", Topology: meshOut(f), Finding: id, Outcome: Connected, Title: "nothing leads to a mesh's chain",
			Doc: "The rule of OUTPUT is gone: the application's calls leave as they are.", Setting: sound(f, legacy),
			Faults: []Change{command("pod", "", iptables(f, "iptables-legacy"), "-t", "nat", "-D", "OUTPUT", "-p", "tcp", "-j", "MESH_OUTPUT")}},
	}
	labs = append(labs, Lab{Name: "no-mark-route", Topology: meshOut(f), Finding: id, Outcome: Connected, Title: "calls are marked for a proxy, and not routed by it",
		Doc: "The routing rule for the mark is gone: calls leave past the proxy.", Faults: sound(f, byMarks)})
	if f == IPv6 {
		return append(labs, Lab{Name: "no-ipv6", Topology: meshOut(f), Finding: "redirect-bypassed-ipv6", Outcome: Connected, Title: "IPv4 alone is redirected",
			Doc: "The rules for IPv6 were not written, and the application calls by IPv6.", Faults: sound(IPv4, kuma(IPv4, "iptables-nft"))})
	}
	astray := meshDNS(f)
	return append(labs, Lab{Name: "other-resolver", Topology: astray, Finding: id, Outcome: Connected, Title: "DNS goes past the mesh",
		Doc:    "The rules are for another name server than the one that the application asks.",
		Faults: []Change{redirects("pod", f, elsewhere(k)), runProxy("pod", k.proxy)}})
}

// lostInProxy are connections that end at the proxy, or before it.
func lostInProxy(f Family) []Lab {
	k := kuma(f, "iptables-nft")
	stranger, wanderer := k.proxy, k.proxy
	unmarked := ambient.proxy
	unmarked.Mark = 0
	stranger.UID, wanderer.Ahead = 4711, addrPort(clients.addr(f, 7), 80)
	filter := func(source netip.Addr) Chain {
		return policyAccept("INPUT", rule("", drop(), fromAddress(source)))
	}
	labs := []Lab{
		{Name: "no-proxy", Topology: meshIn(f), Finding: "redirect-target-not-listening", Outcome: Refused, Title: "a call to a proxy that is not there",
			Doc: "The application listens, and its clients are refused.", Faults: []Change{redirects("pod", f, k)}},
		{Name: "no-proxy", Topology: meshOut(f), Finding: "redirect-target-not-listening", Outcome: Refused, Title: "an application's call to a proxy that is not there",
			Doc: "Nothing leaves the pod.", Faults: []Change{redirects("pod", f, sidecar)}},
		{Name: "loop", Topology: meshOut(f), Finding: "redirect-loop", Outcome: Broken, Title: "a proxy that is redirected to itself",
			Doc: "It runs as another user than the rules let go.", Faults: []Change{redirects("pod", f, k), runProxy("pod", stranger)}},
		{Name: "loop", Topology: meshIn(f), Finding: "redirect-loop", Outcome: Broken, Title: "what a proxy hands to its application comes back to it",
			Doc: "The rule that lets the address of lo go from which it calls is gone.", Setting: sound(f, k),
			Faults: []Change{command("pod", "", iptables(f, k.tool), "-t", "nat", "-D", "MESH_OUTPUT", "-s", single(k.proxy.Source).String(), "-o", "lo", "-j", "RETURN")}},
		{Name: "blocked", Topology: meshIn(f), Finding: "loopback-blocked", Outcome: Broken, Title: "a filter between proxy and application",
			Doc: "It drops what comes from the address of lo that the proxy uses.", Setting: sound(f, k),
			Faults: []Change{filters("pod", fmt.Sprintf("input: drop from %s", k.proxy.Source), filter(k.proxy.Source))}},
		{Name: "lo-down", Topology: meshIn(f), Finding: "loopback-down", Outcome: Broken, Title: "lo is down, and a proxy cannot get to its application",
			Doc: "The client is connected to the proxy, whose own call fails before there is a packet.", Setting: sound(f, k), Faults: []Change{setDown("pod", "lo")}},
		{Name: "lo-down", Topology: meshOut(f), Finding: "loopback-down", Outcome: Failed, Title: "lo is down, and an application cannot get to its proxy",
			Doc: "Its connections are redirected to an address that nothing leads to.", Setting: sound(f, k), Faults: []Change{setDown("pod", "lo")}},
		{Name: "leaked", Topology: meshIn(f), Finding: "loopback-source-leaked", Outcome: Broken, Title: "a proxy that calls another host from an address of lo",
			Doc: "The kernel refuses it before there is a packet.", Faults: []Change{redirects("pod", f, k), runProxy("pod", wanderer)}},
	}
	labs = append(labs, Lab{Name: "no-way-back", Topology: meshIn(f), Finding: "redirect-missing", Outcome: Broken, Title: "a proxy by TPROXY, and no route by mark",
		Doc: "The application answers the client, for whom the proxy poses, past the proxy.", Faults: sound(f, istioTProxy)})
	if f == IPv4 {
		toLoopback := Chain{Family: ipFamily(f), Table: "catch", Name: "in", Hook: "PREROUTING", Type: "nat", Priority: -100,
			Rules: []FilterRule{rule("", dnat(netip.MustParseAddrPort("127.0.0.1:15006")), toPort(8080))}}
		labs = append(labs,
			Lab{Name: "no-localnet", Topology: meshIn(f), Finding: "route-localnet-disabled", Title: "inbound traffic is sent to 127.0.0.1",
				Doc:     "The kernel takes such a packet for a martian.",
				Setting: []Change{runProxy("pod", k.proxy)}, Faults: []Change{filters("pod", "prerouting: dnat to 127.0.0.1:15006", toLoopback)}},
			Lab{Name: "unmarked", Topology: meshOut(f), Finding: "redirect-loop", Outcome: Broken, Title: "a proxy that does not mark its packets",
				Doc: "The rules tell it by that mark alone (Istio's ambient mode): what it sends is redirected to itself.", Faults: []Change{redirects("pod", f, ambient), runProxy("pod", unmarked)}},
			Lab{Name: "other-zone", Topology: meshDNS(f), Finding: "reply-wrong-source", Title: "a mesh's DNS answers in another conntrack zone",
				Doc: "The rules that put its answers into that of the queries are gone, so that their source is not restored.", Setting: sound(f, k),
				Faults: []Change{
					command("pod", "", "iptables-nft", "-t", "raw", "-D", "OUTPUT", "-p", "udp", "--sport", "15053", "-m", "owner", "--uid-owner", "5678", "-j", "CT", "--zone", "2"),
					command("pod", "", "iptables-nft", "-t", "raw", "-D", "OUTPUT", "-p", "udp", "--sport", "15053", "-m", "owner", "--gid-owner", "5678", "-j", "CT", "--zone", "2"),
				}},
			Lab{Name: "no-tproxy", Topology: meshIn(f), Finding: "redirect-target-not-listening", Title: "a call to a proxy that is not there, by TPROXY",
				Doc: "No socket takes what the rules of table mangle hand over: it is dropped.", Setting: byMark(f, 1337), Faults: []Change{redirects("pod", f, istioTProxy)}},
			Lab{Name: "no-proxy", Topology: meshDNS(f), Finding: "redirect-target-not-listening", Title: "DNS for a mesh's resolver that is not there",
				Doc: "Queries are redirected to a port where nobody listens.", Faults: []Change{redirects("pod", f, k)}})
	}
	return labs
}

// elsewhere is a mesh's rules for another name server.
func elsewhere(r redirection) redirection {
	r.file = "kuma-1.8.1-resolver.rules"
	return r
}
