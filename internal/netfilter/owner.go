package netfilter

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// Owner is who made a packet: the ids with which its socket was opened.
type Owner struct {
	Known    bool // there is a socket, and UID is its user
	UID      uint32
	GID      uint32
	GIDKnown bool
}

// Bits of the match owner (include/uapi/linux/netfilter/xt_owner.h).
const (
	ownerUID    = 1 << 0
	ownerGID    = 1 << 1
	ownerSocket = 1 << 2
	ownerGroups = 1 << 3 // also the supplementary groups
)

// idRange is a range of user or group ids, both ends included.
type idRange struct{ low, high uint32 }

func (r idRange) has(id uint32) bool { return id >= r.low && id <= r.high }

func (r idRange) String() string {
	if r.low == r.high {
		return fmt.Sprint(r.low)
	}
	return fmt.Sprintf("%d-%d", r.low, r.high)
}

// xtOwner is the match owner (struct xt_owner_match_info).
type xtOwner struct {
	uid, gid      idRange
	match, invert uint8
}

func decodeOwner(r *reader) matcher {
	return &xtOwner{
		uid:   idRange{low: r.u32(), high: r.u32()},
		gid:   idRange{low: r.u32(), high: r.u32()},
		match: r.u8(), invert: r.u8(),
	}
}

// matches follows owner_mt in net/netfilter/xt_owner.c.
func (x *xtOwner) matches(p *packet) truth {
	o := p.owner
	if !o.Known {
		return maybe
	}
	t := yes
	check := func(bit uint8, known, fits bool) {
		if x.match&bit == 0 {
			return
		}
		if !known {
			t = t.and(maybe)
			return
		}
		t = t.and(truthOf(fits).xor(x.invert&bit != 0))
	}
	check(ownerSocket, true, true)
	check(ownerUID, true, x.uid.has(o.UID))
	check(ownerGID, o.GIDKnown, x.gid.has(o.GID))
	if x.match&ownerGroups != 0 && t != no && !(o.GIDKnown && x.gid.has(o.GID)) {
		return maybe
	}
	return t
}

func (x *xtOwner) option() string {
	out := []string{"-m owner"}
	if x.match&ownerSocket != 0 {
		out = append(out, negated(x.invert&ownerSocket != 0, "--socket-exists"))
	}
	if x.match&ownerUID != 0 {
		out = append(out, negated(x.invert&ownerUID != 0, "--uid-owner "+x.uid.String()))
	}
	if x.match&ownerGID != 0 {
		out = append(out, negated(x.invert&ownerGID != 0, "--gid-owner "+x.gid.String()))
	}
	if x.match&ownerGroups != 0 {
		out = append(out, "--suppl-groups")
	}
	return strings.Join(out, " ")
}

// idBits is what nftables' meta skuid and skgid hold: a packet without socket does not match.
func (o Owner) idBits(key uint32) (bits, truth) {
	switch {
	case !o.Known, key == unix.NFT_META_SKGID && !o.GIDKnown:
		return unknownBits(4), maybe
	case key == unix.NFT_META_SKGID:
		return native32(o.GID), yes
	}
	return native32(o.UID), yes
}
