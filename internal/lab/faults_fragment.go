package lab

import (
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/replypath/replypath/pkg/trace"
)

// fragmentLabs are datagrams that are too big for one packet, and lose a part.
func fragmentLabs(f Family) []Lab {
	const id = "fragment-drop"
	return complete([]Lab{
		{Name: "healthy-fragments", Topology: bulky(overUDP(routed(f))), Title: "datagrams that travel in fragments", Doc: "Each is put together again where it arrives."},
		{Name: "healthy-fragments-filter", Topology: bulky(overUDP(routed(f))), Title: "a filter that lets datagrams pass by their addresses",
			Doc:     "Fragments have addresses, but no ports.",
			Setting: []Change{filters("r1", "forward: policy drop, accept to and from the server", policyDrop("FORWARD", rule("", accept(), toAddress(servers.addr(f, 20))), rule("", accept(), fromAddress(servers.addr(f, 20)))))}},
		{Name: "fragments-policy", Topology: bulky(overUDP(routed(f))), Finding: id, Direction: trace.Request, Where: "r1",
			Title:  "a filter that lets datagrams pass by their ports",
			Doc:    "The first fragment passes; the others have no ports, and the policy drops them.",
			Faults: []Change{filters("r1", "forward: policy drop, accept udp port 80", policyDrop("FORWARD", rule("", accept(), toUDPPort(80)), rule("", accept(), fromUDPPort(80))))}},
		{Name: "fragments-router", Topology: bulky(overUDP(routed(f))), Finding: id, Direction: trace.Request, Where: "r1",
			Title: "a router drops fragments", Doc: "A rule of FORWARD drops what is not the first fragment.",
			Faults: []Change{filters("r1", "forward: drop fragments", policyAccept("FORWARD", rule("", drop(), laterFragment(f))))}},
		{Name: "fragments-reply", Topology: bulky(overUDP(asym(f))), Finding: id, Direction: trace.Reply, Where: "r2",
			Title: "the router of the way back drops fragments", Doc: "Requests arrive; answers never become whole.",
			Faults: []Change{filters("r2", "prerouting: drop fragments", Chain{Table: "raw", Name: "prerouting", Hook: trace.Prerouting, Priority: -450, Rules: []FilterRule{rule("", drop(), laterFragment(f))}})}},
	})
}

// laterFragment matches fragments but the first.
func laterFragment(f Family) []expr.Any {
	if f == IPv6 {
		return []expr.Any{
			&expr.Exthdr{DestRegister: 1, Type: unix.IPPROTO_FRAGMENT, Offset: 2, Len: 2, Op: expr.ExthdrOpIpv6},
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 2, Mask: []byte{0xff, 0xf8}, Xor: []byte{0, 0}},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{0, 0}},
		}
	}
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.NFPROTO_IPV4}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 6, Len: 2},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 2, Mask: []byte{0x1f, 0xff}, Xor: []byte{0, 0}},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{0, 0}},
	}
}
