// Package correlate joins events into paths and opens cases.
//
// A TCP exchange is joined across namespaces, NAT and tunnels by the sequence
// number of its SYN, which nothing on the way changes: the request carries it,
// the answer carries it plus one as its acknowledgement. Events without
// sequence numbers are joined by namespace and tuple.
//
// Join does the same for what agents of several nodes know, each by its own clock.
//
// Everything is bounded: the number of live paths, their hops and their age.
// The clock is that of the events, or is passed in.
package correlate
