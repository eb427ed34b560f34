// Package check says before there is traffic whether a reply would find its
// way: it walks the first packet of a connection from the client to the host
// that is to answer, and the reply back, over the network namespaces of this
// node, as far as the links between them are known. Each namespace is asked what
// it would do with the packet; what would be lost is a case for the same rules
// that explain what was lost. After the first two packets come the third of TCP's
// handshake, the fragments of datagrams, and the ICMP errors about what is too big
// for a hop. What cannot be judged, as a program that keeps state, is said so.
// Nothing is sent but by Probe, and nothing is changed.
package check
