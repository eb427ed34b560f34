// Package netstate answers what one network namespace would do with a packet:
// which routes it would choose both ways, what its devices and neighbours are
// like, who listens. It asks the kernel over netlink, from inside the
// namespace, and changes nothing.
//
// Directory names namespaces and opens them; Reader asks.
package netstate
