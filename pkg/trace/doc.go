// Package trace is replypath's vocabulary: what the kernel told (Event), where
// a packet went (Path, Hop), what a host said of itself (HostState) and what is
// concluded from them (Finding).
//
// The package and those below it are pure: no kernel, no Kubernetes, no gRPC
// and no clock of their own, so that the same diagnosis runs live, on a
// recording and in a table test.
package trace
