// Package lab builds broken networks for replypath to explain: topologies of
// network namespaces, and the faults put into them, are values.
//
// A lab lives in namespaces of its own, named rplab-LAB-XXXX-HOST under
// /run/netns; the host's own network is never touched. It needs root and
// nothing else: no ip, nft or tc program.
package lab
