// Package filter selects paths with expressions in the manner of
// pcap-filter(7), as tcpdump users write them:
//
//	tcp and host 203.0.113.80 and port 80
//	src net 10.1 and not port 53
//	tcp dst port 80 or 443
//
// # Language
//
// A primitive is an address, network or port after its qualifiers, in this order:
//
//	protocol   tcp, udp, icmp, icmp6, ip, ip6
//	direction  src, dst, src or dst, src and dst
//	type       host, net, port, portrange
//
// A protocol alone is a primitive too. Without a direction either end may
// match; without a type an address is a host and a prefix a net. Primitives are
// joined with not (!), and (&&), or (||) and parentheses. Not binds closest;
// and and or have equal precedence and associate to the left, as in
// pcap-filter(7). An address or port without qualifiers takes those of the one
// before it: "tcp dst port 80 or 443". A port's name is looked up in
// /etc/services and stands for the protocols that it is listed with. Names of
// hosts are refused: an answer must not depend on a resolver that may be the
// fault being looked for.
//
// More is accepted than libpcap does where there is only one thing that it can
// mean: "tcp host ADDRESS", "ip6 port 80", a bare address as the first primitive, and keywords
// in capitals. Packet contents ("tcp[tcpflags]") and link-layer primitives are refused.
//
// # Paths
//
// A path has several tuples: what the client meant, and what each hop saw,
// which differ where there is NAT. All of them are taken in the direction of
// the request (those of the reply are reversed), so src is the client's side
// and dst the server's. An expression matches a path when it holds for one of
// these tuples as a whole: "src host A and dst port 8080" finds the connection
// of A that was sent on to port 8080, whatever port A asked for. A negation is
// about the whole path: "not port 53" means that no tuple has port 53, so that
// an expression and its negation never both match.
package filter
