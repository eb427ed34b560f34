package netfilter

import (
	"fmt"
	"net/netip"
	"strings"
)

// Bits of xt_state and xt_conntrack beside 1 << (info % 3 + 1).
const (
	xtStateInvalid       = 1 << 0
	xtStateEstablished   = 1 << 1
	xtStateRelated       = 1 << 2
	xtStateNew           = 1 << 3
	xtStateUntrackedOld  = 1 << 6 // XT_STATE_UNTRACKED
	xtConntrackSNAT      = 1 << 6
	xtConntrackDNAT      = 1 << 7
	xtConntrackUntracked = 1 << 8
)

// hasState compares the connection's state with a mask of nftables' bits.
func (c *entry) hasState(mask uint32) truth {
	possible := c.state | ^c.stateKnown
	switch {
	case possible&mask == 0:
		return no
	case c.state&c.stateKnown&mask != 0 || c.state == 0 && possible&^mask == 0:
		return yes
	}
	return maybe
}

// xtState is the match state (struct xt_state_info).
type xtState struct{ mask uint32 }

func (x *xtState) matches(p *packet) truth {
	return p.conntrack.hasState(stateBits(x.mask, xtStateUntrackedOld))
}

func (x *xtState) option() string {
	return "-m state --state " + stateNames(stateBits(x.mask, xtStateUntrackedOld))
}

// stateBits turns a mask of xt_state or xt_conntrack into nftables' bits.
func stateBits(mask, untracked uint32) uint32 {
	out := mask & (stateInvalid | stateEstablished | stateRelated | stateNew)
	if mask&untracked != 0 {
		out |= stateUntracked
	}
	return out
}

// stateNames are the states in iptables' words.
func stateNames(mask uint32) string {
	return strings.Join(namesOf(mask, []named{
		{stateInvalid, "INVALID"}, {stateNew, "NEW"}, {stateRelated, "RELATED"},
		{stateEstablished, "ESTABLISHED"}, {stateUntracked, "UNTRACKED"},
	}), ",")
}

// named is a bit and its name.
type named struct {
	bit  uint32
	name string
}

func namesOf(mask uint32, names []named) []string {
	var out []string
	for _, n := range names {
		if mask&n.bit != 0 {
			out = append(out, n.name)
			mask &^= n.bit
		}
	}
	if mask != 0 {
		out = append(out, fmt.Sprintf("0x%x", mask))
	}
	return out
}

// xtConntrack is the match conntrack (struct xt_conntrack_mtinfo3).
type xtConntrack struct {
	addrs         [4]netip.Addr // original source and destination, reply source and destination
	masks         [4]netip.Addr
	protocol      uint16
	ports         [4]portRange
	flags, invert uint16
	state, status uint16
}

// Flags of xt_conntrack_mtinfo.match_flags.
const (
	conntrackState     = 1 << 0
	conntrackProto     = 1 << 1
	conntrackAddr      = 1 << 2 // and the three bits after it
	conntrackStatus    = 1 << 6
	conntrackExpires   = 1 << 7
	conntrackPort      = 1 << 8 // and the three bits after it
	conntrackDirection = 1 << 12
)

func decodeConntrack(r *reader, revision uint8, is6 bool) matcher {
	x := &xtConntrack{}
	for i := range x.addrs {
		x.addrs[i], x.masks[i] = r.address(is6), r.address(is6)
	}
	r.skip(8)
	x.protocol = r.u16()
	for i := range x.ports {
		port := r.be16
		if revision == 3 {
			port = r.u16
		}
		x.ports[i].low = port()
		x.ports[i].high = x.ports[i].low
	}
	x.flags, x.invert = r.u16(), r.u16()
	if revision == 1 {
		x.state, x.status = uint16(r.u8()), uint16(r.u8())
		return x
	}
	x.state, x.status = r.u16(), r.u16()
	if revision == 3 {
		for i := range x.ports {
			if high := r.u16(); high > x.ports[i].low {
				x.ports[i].high = high
			}
		}
	}
	return x
}

// matches follows conntrack_mt in net/netfilter/xt_conntrack.c.
func (x *xtConntrack) matches(p *packet) truth {
	c := &p.conntrack
	t := yes
	if x.flags&conntrackState != 0 {
		t = x.matchesState(c).xor(x.invert&conntrackState != 0)
	}
	if c.there == no {
		return t.and(truthOf(x.flags&conntrackState != 0))
	}
	rest := x.matchesEntry(c)
	if c.there == maybe && rest != yes {
		rest = maybe
	}
	return t.and(rest)
}

func (x *xtConntrack) matchesState(c *entry) truth {
	t := c.hasState(stateBits(uint32(x.state), xtConntrackUntracked))
	for bit, status := range map[uint16]uint32{xtConntrackSNAT: statusSNAT, xtConntrackDNAT: statusDNAT} {
		if x.state&bit != 0 && c.there != no {
			t = t.or(c.hasStatus(status))
		}
	}
	return t
}

// hasStatus reports whether one of the bits is set.
func (c *entry) hasStatus(mask uint32) truth {
	switch {
	case c.status&c.statusKnown&mask != 0:
		return yes
	case c.statusKnown&mask == mask:
		return no
	}
	return maybe
}

func (x *xtConntrack) matchesEntry(c *entry) truth {
	t := yes
	check := func(bit uint16, match truth) {
		if x.flags&bit != 0 {
			t = t.and(match.xor(x.invert&bit != 0))
		}
	}
	check(conntrackDirection, truthOf(!c.reply))
	check(conntrackStatus, c.hasStatus(uint32(x.status)))
	check(conntrackExpires, maybe)
	if !c.tuples[0].IsValid() || !c.tuples[1].IsValid() {
		if x.flags&^uint16(conntrackState|conntrackDirection|conntrackStatus) != 0 {
			return t.and(maybe)
		}
		return t
	}
	check(conntrackProto, truthOf(uint16(c.tuples[0].Protocol) == x.protocol))
	ends := [4]netip.AddrPort{c.tuples[0].Src, c.tuples[0].Dst, c.tuples[1].Src, c.tuples[1].Dst}
	for i, e := range ends {
		check(conntrackAddr<<i, truthOf(maskedEqual(e.Addr(), x.addrs[i], x.masks[i].AsSlice())))
		check(conntrackPort<<i, truthOf(x.ports[i].has(e.Port())))
	}
	return t
}

func (x *xtConntrack) option() string {
	out := []string{"-m conntrack"}
	add := func(bit uint16, text string) {
		if x.flags&bit != 0 {
			out = append(out, negated(x.invert&bit != 0, text))
		}
	}
	states := stateNames(stateBits(uint32(x.state), xtConntrackUntracked))
	for _, n := range []named{{xtConntrackSNAT, "SNAT"}, {xtConntrackDNAT, "DNAT"}} {
		if uint32(x.state)&n.bit != 0 {
			states = strings.TrimPrefix(states+","+n.name, ",")
		}
	}
	add(conntrackState, "--ctstate "+states)
	add(conntrackProto, "--ctproto "+fmt.Sprint(x.protocol))
	ends := []string{"origsrc", "origdst", "replsrc", "repldst"}
	for i, end := range ends {
		if text := maskedAddress("--ct"+end, x.addrs[i], x.masks[i].AsSlice()); text != "" {
			add(conntrackAddr<<i, strings.TrimSuffix(text, fmt.Sprintf("/%d", x.addrs[i].BitLen())))
		}
	}
	for i, end := range ends {
		add(conntrackPort<<i, "--ct"+end+"port "+x.ports[i].String())
	}
	add(conntrackStatus, "--ctstatus "+strings.Join(namesOf(uint32(x.status), []named{
		{1, "EXPECTED"}, {2, "SEEN_REPLY"}, {4, "ASSURED"}, {8, "CONFIRMED"}}), ","))
	add(conntrackDirection, "--ctdir ORIGINAL")
	return strings.Join(out, " ")
}
