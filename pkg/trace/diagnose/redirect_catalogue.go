package diagnose

import "github.com/replypath/replypath/pkg/trace"

// live are the findings about transparent proxies that packets show, too: those of
// `replypath validate`, and with them how a case is told by what was found in its namespace.
func live() []Rule {
	with := func(r Rule, explain func(*trace.Case, *trace.HostState) *explanation) Rule {
		r.explain = explain
		return r
	}
	return []Rule{
		with(loopbackDown, explainLoopbackDown),
		loopbackSourceLeaked,
		with(redirectLoop, either(explainRedirectLoop, explainAskedItself)),
		with(redirectTargetNotListening, either(explainTargetNotListening, explainRefusedRedirect)),
		with(routeLocalnetDisabled, explainLocalnet),
		with(redirectBypassedIPv6, explainBypassedIPv6),
		with(redirectMissing, explainRedirectMissing),
		with(loopbackBlocked, explainLoopbackBlocked),
	}
}

// either asks one, and another where that has nothing to say.
func either(first, second func(*trace.Case, *trace.HostState) *explanation) func(*trace.Case, *trace.HostState) *explanation {
	return func(c *trace.Case, s *trace.HostState) *explanation {
		if e := first(c, s); e != nil {
			return e
		}
		return second(c, s)
	}
}

// Validations are the findings that `replypath validate` alone makes: no packet shows them.
func Validations() []Rule {
	return []Rule{meshNameAmbiguous}
}

var redirectMissing = Rule{
	ID:       "redirect-missing",
	Title:    "a proxy listens, but traffic goes past it: no redirect rules",
	Severity: trace.Error,
	Doc: "No rule of the namespace redirects what applications send or get to a transparent proxy: the rules were never written (the CNI plugin is not installed, or failed), or a part of them is missing: " +
		"a chain that redirects, to which no rule leads; a mesh's chain in which nothing redirects; DNS that is redirected for other name servers than that of the application; or what the proxy sends to its own namespace is not brought back to it; rules that mark packets for the proxy (TPROXY), and no routing rule and local route that lead the mark there. " +
		"netfilter is asked what it would do with sample packets, so it does not matter how the rules are written. A rule that lets traffic go on purpose is an exclusion, no fault. " +
		"Of live traffic it is told where rules or a mesh's ports show that there is to be a proxy. Where all rules are gone and the proxy listens on ports of its own, nothing tells it from any server: `replypath validate redirect` does, as it is asked about a namespace that is to be redirected.",
}

var redirectBypassedIPv6 = Rule{
	ID:       "redirect-bypassed-ipv6",
	Title:    "IPv4 is redirected, IPv6 is not",
	Severity: trace.Error,
	Doc: "The rules for IPv4 redirect traffic to a proxy, those for IPv6 do not, or not all of it, though the namespace has an IPv6 address. Applications prefer IPv6, so traffic goes past the proxy without a packet being lost. " +
		"A namespace without IPv6 address, or one whose filter drops IPv6 altogether, has no such fault.",
}

var redirectTargetNotListening = Rule{
	ID:       "redirect-target-not-listening",
	Title:    "the redirect points to a port where nobody listens (proxy or its DNS)",
	Severity: trace.Error,
	Doc: "Traffic is redirected to a port at which no socket would take it: the proxy is not started, not ready or has ended; it listens on another port, for the other IP version, or on 127.0.0.1 alone, where inbound traffic does not go. " +
		"Connections are refused although the application runs. It is also told of a packet that was refused: a DNS query, or a connection, that the namespace itself had redirected.",
}

var redirectLoop = Rule{
	ID:       "redirect-loop",
	Title:    "the proxy's own traffic is redirected to itself",
	Severity: trace.Error,
	Doc: "What the proxy sends to other hosts, to its name server, or from 127.0.0.6 (::6) to the application is redirected back to the proxy: each connection makes another, thousands a second, and no packet is dropped. " +
		"The rules tell the proxy by its user, group or mark. They lack that exception, or are for another user than the one of the process that listens. " +
		"It is also told of a DNS query that came back to the resolver, or proxy, that had made it of another one.",
}

var loopbackBlocked = Rule{
	ID:       "loopback-blocked",
	Title:    "a filter drops the 127.0.0.6 leg",
	Severity: trace.Error,
	Doc: "A filter rule or policy drops what a redirection sends over the loopback device: the application's connection to the proxy, the proxy's from 127.0.0.6 (::6) to the application, or their answers. " +
		"The client is connected to the proxy all the same, and gets nothing.",
}

var loopbackDown = Rule{
	ID:       "loopback-down",
	Title:    "`lo` is down in the namespace",
	Severity: trace.Error,
	Doc: "The loopback device of the namespace is down, as it is in every new namespace until somebody sets it up. Redirected connections then fail before there is a packet. " +
		"A namespace that has never had an IPv4 address has no routing tables in which the kernel could be seen to look: there connect() fails unseen, and `replypath validate redirect` alone tells it.",
}

var loopbackSourceLeaked = Rule{
	ID:       "loopback-source-leaked",
	Title:    "a 127/8 source is used towards a destination that is not local",
	Severity: trace.Error,
	Doc: "A socket that is bound to an address which only lo has (127/8, ::1, or ::6 as a mesh gives it to lo) calls another host. With IPv4 connect() or sendto() fails before there is a packet; " +
		"the socket's own route lookup shows it. With IPv6, or with route_localnet, packets leave and no answer comes back. A proxy that calls its application from 127.0.0.6, and takes another host for it, does so.",
	explain: explainSourceLeaked,
}

var routeLocalnetDisabled = Rule{
	ID:       "route-localnet-disabled",
	Title:    "traffic was sent to 127/8 from outside and `route_localnet` is off",
	Severity: trace.Error,
	Doc:      "A rule sends inbound traffic to an address in 127/8 (DNAT). The kernel drops packets from outside to such an address as martians unless route_localnet is on for the device that they come in by.",
}

var meshNameAmbiguous = Rule{
	ID:       "mesh-name-ambiguous",
	Title:    "a mesh or proxy name holds a dot, so joined identifiers cannot be split again",
	Severity: trace.Error,
	Doc: "Kuma joins a mesh's and a proxy's name with a dot, and splits the identifier again at the first one: mesh `aa.a` and proxy `dp-1` become mesh `aa` and proxy `a.dp-1`, which nobody knows. " +
		"A name that is an RFC 1035 label (lower-case letters, digits and hyphens, a letter first, at most 63) has one reading. Names are taken from arguments, from files of resources, and from the command line and environment of kuma-dp and the resource that it was started with.",
}
