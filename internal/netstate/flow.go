package netstate

import (
	"net/netip"

	"github.com/replypath/replypath/pkg/trace"
)

// flow is the key of a route lookup (struct flowi4, struct flowi6). Fields
// that a packet's first lookup leaves at zero are not here: TOS, flow label,
// tunnel id; the user is root.
type flow struct {
	src, dst     netip.Addr
	sport, dport uint16
	protocol     trace.Protocol
	mark         uint32
	iif, oif     uint32 // ifindex; iif 0: the packet is made here
}

// flowOf returns the key of a packet's lookup.
func flowOf(packet trace.Tuple, mark, iif uint32) flow {
	return flow{
		src: packet.Src.Addr(), dst: packet.Dst.Addr(),
		sport: packet.Src.Port(), dport: packet.Dst.Port(),
		protocol: packet.Protocol, mark: mark, iif: iif,
	}
}

// hasPorts reports whether the kernel takes ports for this protocol (rtm_getroute_parse_ip_proto).
func (f flow) hasPorts() bool { return f.protocol == trace.TCP || f.protocol == trace.UDP }
