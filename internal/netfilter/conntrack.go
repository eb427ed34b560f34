package netfilter

import (
	"github.com/replypath/replypath/pkg/trace"
)

// enum ip_conntrack_info (include/uapi/linux/netfilter/nf_conntrack_common.h).
const (
	infoEstablished = 0
	infoRelated     = 1
	infoNew         = 2
	replyInfo       = 3 // IP_CT_IS_REPLY: added for packets of the reply direction
	infoUntracked   = 7
)

// Bits of nftables' `ct state` (NF_CT_STATE_BIT and its like in the same file).
const (
	stateInvalid     = 1 << 0
	stateEstablished = 1 << 1
	stateRelated     = 1 << 2
	stateNew         = 1 << 3
	stateUntracked   = 1 << 6
)

// Bits of an entry's status (enum ip_conntrack_status).
const (
	statusSeenReply = 1 << 1
	statusSNAT      = 1 << 4
	statusDNAT      = 1 << 5
)

// entry is what rules can ask about the packet's connection.
type entry struct {
	there       truth
	state       uint32 // `ct state` bits
	stateKnown  uint32 // which of them are known
	status      uint32
	statusKnown uint32
	reply       bool // direction of the packet
	tuples      [2]trace.Tuple
}

// noEntry is a packet without connection that is not exempt from tracking:
// rules call it INVALID.
func noEntry() entry {
	return entry{there: no, state: stateInvalid, stateKnown: ^uint32(0)}
}

// conntrackEntry tells the state that rules see. A first packet without entry
// is left open: it is new to the eye, and INVALID if the kernel refused it.
func conntrackEntry(q trace.Question) entry {
	c := q.Conntrack
	if !c.Known() {
		switch {
		case c.Info == infoUntracked:
			return entry{there: no, state: stateUntracked, stateKnown: ^uint32(0)}
		case q.Packet.Protocol == trace.TCP && q.Flags != 0 && !q.Flags.IsSYN():
			return noEntry()
		}
		return entry{there: maybe, stateKnown: ^uint32(stateInvalid | stateNew)}
	}
	e := entry{
		there: yes, stateKnown: ^uint32(0),
		reply:       c.Info >= replyInfo,
		tuples:      [2]trace.Tuple{c.Original, c.Reply},
		statusKnown: statusSNAT | statusDNAT | statusSeenReply,
	}
	switch c.Info % replyInfo {
	case infoEstablished:
		e.state = stateEstablished
		e.status |= statusSeenReply
	case infoRelated:
		e.state = stateRelated
		e.statusKnown &^= statusSeenReply
	default:
		e.state = stateNew
	}
	if !c.Reply.IsValid() {
		e.statusKnown &^= statusSNAT | statusDNAT
		return e
	}
	if c.Original.Dst != c.Reply.Src {
		e.status |= statusDNAT
	}
	if c.Original.Src != c.Reply.Dst {
		e.status |= statusSNAT
	}
	return e
}

// isNew tells whether NAT rules look at the packet: they see the first one of
// a connection only.
func (c *entry) isNew() truth {
	if c.there == no {
		return no
	}
	switch {
	case c.stateKnown&stateNew == 0:
		return maybe
	case c.state&(stateNew|stateRelated) != 0:
		return yes
	}
	return no
}
