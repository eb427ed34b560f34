// Package netfilter tells which rule or chain policy of a network namespace
// drops a packet at a netfilter hook.
//
// It reads the rules of the calling thread's namespace (nftables and
// iptables-nft over netlink, iptables-legacy over getsockopt) and walks them
// with what is known of the packet. What a rule looks at is often not known
// (its length, the owner of its socket, the state of a rate limit), so the walk
// has three truth values: a verdict is certain only when every match on the way
// was understood. Counters help: a rule whose counter is zero has dropped nothing.
//
// Reading changes nothing in the namespace and creates no table; at most the
// kernel loads nf_tables, where that is a module that nobody has used yet.
package netfilter
