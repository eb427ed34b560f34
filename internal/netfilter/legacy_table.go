package netfilter

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// errBroken says that a table's bytes make no sense.
var errBroken = errors.New("broken table")

// legacyEntry is struct ipt_entry or ip6t_entry: a rule, or the mark that
// starts a chain.
type legacyEntry struct {
	offset, next int
	rule         rule
	target       string
	label        string // of an ERROR entry: the chain that starts after it
	verdict      int32  // of a standard target
	jumps        bool   // to another place in the table
	isGoto       bool
}

// legacyLayout is the layout of an entry of one family.
type legacyLayout struct {
	header        int // size of the entry before its matches
	targetOffset  int // where the offset of the target is
	counters      int
	addressSize   int
	gotoFlag      uint8
	protocolAlway bool // IPv4 compares the protocol whenever it is not zero
}

var (
	layout4 = legacyLayout{header: 112, targetOffset: 88, counters: 96, addressSize: 4, gotoFlag: 0x02, protocolAlway: true}
	layout6 = legacyLayout{header: 168, targetOffset: 140, counters: 152, addressSize: 16, gotoFlag: 0x04}
)

// hookNames are iptables' names of its built-in chains.
var hookNames = [legacyHooks]string{"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"}

// targetHeader is the size of struct xt_entry_target and struct xt_entry_match
// without data.
const targetHeader = 32

// decodeLegacyTable parses the entries of a table into chains.
func decodeLegacyTable(f family, name string, about legacyInfo, b []byte) (*table, error) {
	layout := &layout4
	if f == familyIP6 {
		layout = &layout6
	}
	var entries []legacyEntry
	for at := 0; at < len(b); {
		e, err := layout.entry(b, at)
		if err != nil {
			return nil, err
		}
		if len(entries) >= mostRules {
			return nil, errMany
		}
		entries = append(entries, e)
		at = e.next
	}
	t := &table{family: f, name: name, backend: backendLegacy, chains: map[string]*chain{}}
	return t, t.fillLegacy(about, entries)
}

// entry parses the entry at an offset.
func (l *legacyLayout) entry(b []byte, at int) (legacyEntry, error) {
	e := legacyEntry{offset: at}
	rest := b[at:]
	if len(rest) < l.header {
		return e, fmt.Errorf("entry at %d: %w", at, errBroken)
	}
	target := int(binary.NativeEndian.Uint16(rest[l.targetOffset:]))
	next := int(binary.NativeEndian.Uint16(rest[l.targetOffset+2:]))
	if target < l.header || next < target+targetHeader || next > len(rest) {
		return e, fmt.Errorf("entry at %d: %w", at, errBroken)
	}
	e.next = at + next
	e.rule.counter = counter{counted: true, packets: binary.NativeEndian.Uint64(rest[l.counters:])}
	h, flags := l.ipHeader(rest)
	e.isGoto = flags&l.gotoFlag != 0
	e.rule.exprs = append(e.rule.exprs, h)
	if err := l.matches(&e.rule, rest[l.header:target]); err != nil {
		return e, fmt.Errorf("entry at %d: %w", at, err)
	}
	l.target(&e, rest[target:next])
	return e, nil
}

// ipHeader parses struct ipt_ip or ip6t_ip6.
func (l *legacyLayout) ipHeader(b []byte) (*xtHeader, uint8) {
	r := &reader{data: b}
	h := &xtHeader{}
	h.src, _ = netip.AddrFromSlice(r.bytes(l.addressSize))
	h.dst, _ = netip.AddrFromSlice(r.bytes(l.addressSize))
	h.srcMask, h.dstMask = clone(r.bytes(l.addressSize)), clone(r.bytes(l.addressSize))
	copy(h.in[:], r.bytes(unix.IFNAMSIZ))
	copy(h.out[:], r.bytes(unix.IFNAMSIZ))
	copy(h.inMask[:], r.bytes(unix.IFNAMSIZ))
	copy(h.outMask[:], r.bytes(unix.IFNAMSIZ))
	h.protocol = r.u16()
	h.hasProtocol = h.protocol != 0
	var flags uint8
	if l.protocolAlway {
		flags = r.u8()
		h.fragment = flags&0x01 != 0 // IPT_F_FRAG
	} else {
		r.skip(1) // tos
		flags = r.u8()
		h.hasProtocol = flags&0x01 != 0 // IP6T_F_PROTO
		h.tos = flags&0x02 != 0         // IP6T_F_TOS
	}
	h.invert = r.u8()
	return h, flags
}

func clone(b []byte) []byte { return append([]byte(nil), b...) }

// matches parses the match extensions (struct xt_entry_match).
func (l *legacyLayout) matches(r *rule, b []byte) error {
	for len(b) > 0 {
		if len(b) < targetHeader {
			return errBroken
		}
		size := int(binary.NativeEndian.Uint16(b))
		if size < targetHeader || size > len(b) {
			return errBroken
		}
		name, revision := cString(b[2:31]), b[31]
		e := decodeMatch(name, revision, clone(b[targetHeader:size]), l.addressSize == 16)
		if m, ok := e.(xtMatch); ok && r.comment == "" {
			if c, ok := m.matcher.(xtComment); ok {
				r.comment = string(c)
			}
		}
		r.exprs = append(r.exprs, e)
		b = b[size:]
	}
	return nil
}

// target parses struct xt_entry_target.
func (l *legacyLayout) target(e *legacyEntry, b []byte) {
	e.target = cString(b[2:31])
	data := b[targetHeader:]
	switch e.target {
	case "":
		if len(data) >= 4 {
			e.verdict = int32(binary.NativeEndian.Uint32(data))
		}
		e.jumps = e.verdict >= 0
	case "ERROR":
		e.label = cString(data)
	default:
		e.rule.exprs = append(e.rule.exprs, decodeTarget(e.target, b[31], clone(data), l.addressSize == 16)...)
	}
}

// standardVerdict turns a negative standard verdict into one of ours: it is
// minus the NF_ number minus one; NF_REPEAT stands for RETURN.
func standardVerdict(v int32) verdictCode {
	switch v {
	case -1:
		return verdictDrop
	case -2:
		return verdictAccept
	case -4:
		return verdictQueue
	case -5:
		return verdictReturn
	}
	return verdictOpaque
}

// fillLegacy cuts the entries into chains. A built-in chain runs from its hook's
// entry to its underflow, which is the policy; a user's chain starts after an
// ERROR entry with its name and ends with an unconditional RETURN.
func (t *table) fillLegacy(about legacyInfo, entries []legacyEntry) error {
	starts := map[int]*chain{}
	policies := map[int]*chain{}
	for h := range legacyHooks {
		if about.hooks&(1<<h) == 0 {
			continue
		}
		c := &chain{table: t, name: hookNames[h], base: &base{hook: uint32(h), priority: legacyTables[t.name](h), kind: legacyKind(t.name)}}
		t.chains[c.name] = c
		starts[int(about.entry[h])] = c
		policies[int(about.underflow[h])] = c
	}
	for _, e := range entries {
		if e.label != "" && e.target == "ERROR" && e.next < int(about.size) {
			if t.chains[e.label] == nil {
				t.chains[e.label] = &chain{table: t, name: e.label}
			}
			starts[e.next] = t.chains[e.label]
		}
	}
	var current *chain
	for i := range entries {
		e := &entries[i]
		if c := starts[e.offset]; c != nil {
			current = c
		}
		switch {
		case e.target == "ERROR":
			current = nil
			continue
		case current == nil:
			return errBroken
		case policies[e.offset] == current:
			current.base.drop = e.target == "" && standardVerdict(e.verdict) == verdictDrop
			current.base.counter = e.rule.counter
			current = nil
			continue
		case current.base == nil && i+1 < len(entries) && entries[i+1].target == "ERROR":
			continue // the RETURN at the end of a user's chain
		}
		if err := e.finish(starts); err != nil {
			return err
		}
		e.rule.line = len(current.rules) + 1
		current.rules = append(current.rules, e.rule)
	}
	return nil
}

// finish adds the standard target's verdict to a rule.
func (e *legacyEntry) finish(starts map[int]*chain) error {
	if e.target != "" {
		return nil
	}
	v := verdict{}
	switch {
	case e.jumps && int(e.verdict) == e.next:
		return nil // no target: the next rule
	case e.jumps:
		to := starts[int(e.verdict)]
		if to == nil {
			return errBroken
		}
		v.code, v.chain = verdictJump, to.name
		if e.isGoto {
			v.code = verdictGoto
		}
	default:
		v.code = standardVerdict(e.verdict)
	}
	e.rule.exprs = append(e.rule.exprs, decide{v})
	return nil
}

// legacyKind is the type of chain that a table would have in nftables.
func legacyKind(table string) string {
	if table == "nat" {
		return "nat"
	}
	return "filter"
}
