package netstate

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/replypath/replypath/pkg/trace"
)

// Actions and flags of routing rules (include/uapi/linux/fib_rules.h).
const (
	ruleToTable     = 1
	ruleGoto        = 2
	ruleNop         = 3
	ruleBlackhole   = 6
	ruleUnreachable = 7
	ruleProhibit    = 8

	ruleInvert = 0x2

	sizeofRuleHeader = 12
	loopbackIndex    = 1 // LOOPBACK_IFINDEX, the iif of packets made here
)

// span is an inclusive range of numbers; the zero span matches all.
type span struct{ first, last uint32 }

func (s span) unset() bool              { return s == span{} }
func (s span) includes(n uint32) bool   { return s.unset() || s.first <= n && n <= s.last }
func (s span) write(b *strings.Builder) { fmt.Fprint(b, s.first); s.writeEnd(b) }
func (s span) writeEnd(b *strings.Builder) {
	if s.last != s.first {
		fmt.Fprintf(b, "-%d", s.last)
	}
}

// rule is a routing rule (struct fib_rule_hdr and its attributes).
type rule struct {
	priority, table uint32
	action          uint8
	invert          bool
	src, dst        netip.Prefix
	tos             uint8
	mark, mask      uint32
	iif, oif        string
	protocol        trace.Protocol
	sport, dport    span
	users           span
	anyUser         bool // users is not set
	target          uint32
	suppressLength  int32 // -1: none
	l3mdev          bool
	unseen          bool // it selects by something that a flow here does not have (tunnel id, DSCP, flow label)
	suppressGroup   int32
}

// parseRule reads a struct fib_rule_hdr with its attributes.
func parseRule(b []byte) (rule, error) {
	if len(b) < sizeofRuleHeader {
		return rule{}, errTruncated
	}
	family := b[0]
	r := rule{
		tos: b[3], table: uint32(b[4]), action: b[7], anyUser: true, suppressLength: -1, suppressGroup: -1,
		invert: binary.NativeEndian.Uint32(b[8:])&ruleInvert != 0,
	}
	var dst, src []byte
	for kind, value := range attributes(b[sizeofRuleHeader:]) {
		switch kind {
		case unix.FRA_DST:
			dst = value
		case unix.FRA_SRC:
			src = value
		default:
			r.set(kind, value)
		}
	}
	r.dst = prefixOf(family, dst, b[1])
	r.src = prefixOf(family, src, b[2])
	if !r.dst.IsValid() || !r.src.IsValid() {
		return rule{}, fmt.Errorf("parse rule %d: prefix does not fit", r.priority)
	}
	return r, nil
}

// Attributes that came after those of golang.org/x/sys/unix (FRA_DSCP, 6.14, and on).
const (
	ruleDSCP      = 25
	ruleFlowLabel = 26
)

// set takes one attribute other than the prefixes.
func (r *rule) set(kind uint16, value []byte) {
	switch kind {
	case unix.FRA_IIFNAME:
		r.iif = textOf(value)
	case unix.FRA_OIFNAME:
		r.oif = textOf(value)
	case unix.FRA_GOTO:
		r.target = uint32Of(value)
	case unix.FRA_PRIORITY:
		r.priority = uint32Of(value)
	case unix.FRA_FWMARK:
		r.mark = uint32Of(value)
	case unix.FRA_FWMASK:
		r.mask = uint32Of(value)
	case unix.FRA_TABLE:
		r.table = uint32Of(value)
	case unix.FRA_SUPPRESS_PREFIXLEN:
		r.suppressLength = int32(uint32Of(value))
	case unix.FRA_SUPPRESS_IFGROUP:
		r.suppressGroup = int32(uint32Of(value))
	case unix.FRA_L3MDEV:
		r.l3mdev = uint8Of(value) != 0
	case unix.FRA_IP_PROTO:
		r.protocol = trace.Protocol(uint8Of(value))
	case unix.FRA_SPORT_RANGE:
		r.sport = portsOf(value)
	case unix.FRA_DPORT_RANGE:
		r.dport = portsOf(value)
	case unix.FRA_UID_RANGE:
		if len(value) >= 8 {
			r.users = span{uint32Of(value), uint32Of(value[4:])}
			r.anyUser = false
		}
	case unix.FRA_TUN_ID, ruleDSCP, ruleFlowLabel:
		r.unseen = true
	}
}

// portsOf reads struct fib_rule_port_range.
func portsOf(b []byte) span {
	if len(b) < 4 {
		return span{}
	}
	return span{uint32(binary.NativeEndian.Uint16(b)), uint32(binary.NativeEndian.Uint16(b[2:]))}
}

// matches does what fib_rule_match does in net/core/fib_rules.c. name gives
// the names of a flow's devices; vrf says that one of them belongs to a VRF.
func (r rule) matches(f flow, name func(uint32) string, vrf bool) bool {
	return r.selects(f, name, vrf) != r.invert
}

func (r rule) selects(f flow, name func(uint32) string, vrf bool) bool {
	in := f.iif
	if in == 0 {
		in = loopbackIndex
	}
	switch {
	case r.unseen, r.tos != 0:
		return false
	case r.iif != "" && r.iif != name(in),
		r.oif != "" && (f.oif == 0 || r.oif != name(f.oif)):
		return false
	case (r.mark^f.mark)&r.mask != 0:
		return false
	case r.l3mdev && !vrf:
		return false
	case !r.anyUser && (r.users.first > 0):
		return false
	case !r.dst.Contains(f.dst):
		return false
	case r.src.Bits() > 0 && (!f.src.IsValid() || !r.src.Contains(f.src)):
		return false
	case r.protocol != 0 && r.protocol != f.protocol:
		return false
	}
	return r.sport.includes(uint32(f.sport)) && r.dport.includes(uint32(f.dport))
}

// asymmetric reports whether the rule looks at what an output lookup without
// source cannot say: source, input device, VRF.
func (r rule) asymmetric() bool {
	return r.src.Bits() > 0 || r.iif != "" || r.l3mdev
}

// rejection returns the type of route that the rule acts like, and the error
// that the lookup gives (fib4_rule_action); "" for a rule that does not reject.
func (r rule) rejection() (string, unix.Errno) {
	switch r.action {
	case ruleBlackhole:
		return "blackhole", unix.EINVAL
	case ruleUnreachable:
		return "unreachable", unix.ENETUNREACH
	case ruleProhibit:
		return "prohibit", unix.EACCES
	}
	return "", 0
}

// String writes the rule as `ip rule` does, in a form that `ip rule add` takes after the colon.
func (r rule) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d: ", r.priority)
	if r.invert {
		b.WriteString("not ")
	}
	b.WriteString("from ")
	writePrefix(&b, r.src)
	if r.dst.Bits() > 0 {
		b.WriteString(" to ")
		writePrefix(&b, r.dst)
	}
	if r.tos != 0 {
		fmt.Fprintf(&b, " tos 0x%02x", r.tos)
	}
	r.writeSelectors(&b)
	r.writeAction(&b)
	return b.String()
}

func (r rule) writeSelectors(b *strings.Builder) {
	if r.mark != 0 || r.mask != 0 {
		fmt.Fprintf(b, " fwmark %#x", r.mark)
		if r.mask != 0xffffffff {
			fmt.Fprintf(b, "/%#x", r.mask)
		}
	}
	if r.iif != "" {
		b.WriteString(" iif " + r.iif)
	}
	if r.oif != "" {
		b.WriteString(" oif " + r.oif)
	}
	if !r.anyUser {
		fmt.Fprintf(b, " uidrange %d-%d", r.users.first, r.users.last)
	}
	if r.protocol != 0 {
		name := r.protocol.String()
		if strings.HasPrefix(name, "proto-") {
			name = strconv.Itoa(int(r.protocol))
		}
		b.WriteString(" ipproto " + name)
	}
	if !r.sport.unset() {
		b.WriteString(" sport ")
		r.sport.write(b)
	}
	if !r.dport.unset() {
		b.WriteString(" dport ")
		r.dport.write(b)
	}
}

func (r rule) writeAction(b *strings.Builder) {
	if r.l3mdev {
		b.WriteString(" lookup [l3mdev-table]")
	} else if r.action == ruleToTable {
		b.WriteString(" lookup " + tableName(r.table))
	}
	if r.suppressLength >= 0 {
		fmt.Fprintf(b, " suppress_prefixlength %d", r.suppressLength)
	}
	if r.suppressGroup >= 0 {
		fmt.Fprintf(b, " suppress_ifgroup %d", r.suppressGroup)
	}
	switch kind, _ := r.rejection(); {
	case kind != "":
		b.WriteString(" " + kind)
	case r.action == ruleGoto:
		fmt.Fprintf(b, " goto %d", r.target)
	case r.action == ruleNop:
		b.WriteString(" nop")
	}
}

// writePrefix writes "all", an address, or a prefix.
func writePrefix(b *strings.Builder, p netip.Prefix) {
	switch {
	case p.Bits() == 0:
		b.WriteString("all")
	case p.IsSingleIP():
		b.WriteString(p.Addr().String())
	default:
		b.WriteString(p.String())
	}
}

// tableName is the name that every iproute2 knows, else the number: names of
// /etc/iproute2/rt_tables are the host's own.
func tableName(table uint32) string {
	switch table {
	case unix.RT_TABLE_LOCAL:
		return "local"
	case unix.RT_TABLE_MAIN:
		return "main"
	case unix.RT_TABLE_DEFAULT:
		return "default"
	}
	return strconv.FormatUint(uint64(table), 10)
}
