package netfilter

import (
	"encoding/binary"
	"errors"
	"iter"
	"maps"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/replypath/replypath/pkg/trace"
)

// Mentions are the constants that rules of NAT and transparent proxying compare
// packets with. What such a rule does with a packet changes at these alone, so
// they are what to try, beside something that none of them is.
type Mentions struct {
	UIDs, GIDs, Marks []uint32
	Ports             []uint16
	Sources, Dests    []netip.Addr // the first address of each prefix or range
	In, Out           []string     // devices
	// Chains are those that divert packets, themselves or by a jump.
	Chains []DivertingChain
	// Opaque: rules ask for what is not understood (a cgroup, a set of ipset).
	Opaque bool
}

// DivertingChain is a chain that diverts packets, itself or by a jump to another.
type DivertingChain struct {
	Name, Table, Backend string
	Family               string
	Ports                []uint16 // to which it diverts, by whichever way
	Base                 bool
	// Reached lists the hooks whose base chains lead there, however many matches stand before it.
	Reached []trace.NetfilterHook
}

// mostMentions bounds each list: each is tried.
const mostMentions = 64

// Mentions collects them.
func (r *Rules) Mentions() (Mentions, error) {
	s := &scan{seen: make(map[*chain]bool)}
	var errs []error
	for _, t := range r.set.tables {
		if !r.meets(t) || !r.diverts(t) {
			continue
		}
		g := newGraph(t)
		errs = append(errs, g.errs...)
		for _, c := range g.order {
			if ports := g.leads(c, nil); len(ports) > 0 {
				s.found.Chains = append(s.found.Chains, DivertingChain{Name: c.name, Table: t.name, Backend: t.backend,
					Family: t.family.String(), Ports: ports, Base: c.base != nil, Reached: g.reached[c]})
			}
			if len(g.reached[c]) > 0 || c.base != nil {
				s.chain(c)
			}
		}
	}
	return s.found, errors.Join(errs...)
}

// chainsOf lists the chains of a table.
func chainsOf(t *table) iter.Seq[*chain] { return maps.Values(t.chains) }

// divertsItself reports whether a rule of the chain diverts packets.
func divertsItself(c *chain) bool {
	rules, _ := c.load()
	return slices.ContainsFunc(rules, func(r rule) bool { return len(diversions(c.table, &r)) > 0 })
}

// graph is which chain of a table jumps to which.
type graph struct {
	table   *table
	order   []*chain
	jumps   map[*chain][]*chain
	ports   map[*chain][]uint16
	reached map[*chain][]trace.NetfilterHook
	errs    []error
}

func newGraph(t *table) *graph {
	g := &graph{table: t, jumps: map[*chain][]*chain{}, ports: map[*chain][]uint16{}, reached: map[*chain][]trace.NetfilterHook{}}
	for _, name := range slices.Sorted(maps.Keys(t.chains)) {
		c := t.chains[name]
		g.order = append(g.order, c)
		rules, err := c.load()
		if err != nil {
			g.errs = append(g.errs, err)
		}
		for i := range rules {
			g.ports[c] = append(g.ports[c], diversions(t, &rules[i])...)
			for _, to := range jumpsOf(t, &rules[i]) {
				if next := t.chains[to]; next != nil {
					g.jumps[c] = append(g.jumps[c], next)
				}
			}
		}
	}
	for hook, number := range ipHooks {
		for _, c := range g.order {
			if c.base != nil && c.base.hook == number {
				g.reach(c, hook, 0)
			}
		}
	}
	for c := range g.reached {
		slices.Sort(g.reached[c])
	}
	return g
}

func (g *graph) reach(c *chain, hook trace.NetfilterHook, depth int) {
	if slices.Contains(g.reached[c], hook) || depth > mostDepth {
		return
	}
	g.reached[c] = append(g.reached[c], hook)
	for _, to := range g.jumps[c] {
		g.reach(to, hook, depth+1)
	}
}

// leads lists the ports to which a chain diverts.
func (g *graph) leads(c *chain, above []*chain) []uint16 {
	if slices.Contains(above, c) {
		return nil
	}
	out := slices.Clone(g.ports[c])
	for _, to := range g.jumps[c] {
		out = append(out, g.leads(to, append(above, c))...)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// jumpsOf lists the chains that a rule may jump to.
func jumpsOf(t *table, r *rule) []string {
	var out []string
	add := func(v verdict) {
		if v.code == verdictJump || v.code == verdictGoto {
			out = append(out, v.chain)
		}
	}
	for _, e := range r.exprs {
		switch e := e.(type) {
		case decide:
			add(e.verdict)
		case lookup:
			if s := t.sets[e.set]; s != nil && e.isMap && e.to == registerVerdict && s.load() == nil {
				for i := range s.elements {
					add(s.elements[i].verdict)
				}
			}
		}
	}
	return out
}

// diversions lists the ports to which a rule itself diverts; 0 where it leaves the port, or a map chooses it.
func diversions(t *table, r *rule) []uint16 {
	values := map[register][]byte{}
	for _, e := range r.exprs {
		switch e := e.(type) {
		case immediate:
			values[e.to] = e.data
		case tproxy:
			if e.portFrom == 0 {
				return []uint16{e.port}
			}
			return []uint16{portOf(values[e.portFrom])}
		case translate:
			switch {
			case e.to.kind == Redirect && e.to.fixed != nil:
				return []uint16{e.to.fixed.Port}
			case e.to.kind == Redirect:
				return []uint16{portOf(values[e.to.port])}
			case e.to.kind == DestinationNAT && e.to.fixed != nil && e.to.fixed.Addr.IsLoopback():
				return []uint16{e.to.fixed.Port}
			case e.to.kind == DestinationNAT && e.to.fixed == nil:
				if a, ok := netip.AddrFromSlice(values[e.to.addr]); ok && a.IsLoopback() {
					return []uint16{portOf(values[e.to.port])}
				}
			}
		}
	}
	return nil
}

func portOf(b []byte) uint16 {
	if len(b) < 2 {
		return 0
	}
	return binary.BigEndian.Uint16(b)
}

// scan collects what rules mention.
type scan struct {
	found Mentions
	seen  map[*chain]bool
}

// chain scans the rules of a chain.
func (s *scan) chain(c *chain) {
	if s.seen[c] {
		return
	}
	s.seen[c] = true
	rules, _ := c.load()
	for i := range rules {
		s.rule(c.table, &rules[i])
	}
}

// fieldKind is what a register of nftables holds.
type fieldKind uint8

const (
	fieldOther fieldKind = iota
	fieldUID
	fieldGID
	fieldMark
	fieldPort
	fieldSource
	fieldDest
	fieldIn
	fieldOut
)

func (s *scan) rule(t *table, r *rule) {
	fields := map[register]fieldKind{}
	for _, e := range r.exprs {
		switch e := e.(type) {
		case xtMatch:
			s.match(e.matcher)
		case *xtHeader:
			s.header(e)
		case meta:
			fields[e.to] = metaField(e.key)
			if e.key == unix.NFT_META_CGROUP {
				s.found.Opaque = true
			}
		case payload:
			fields[e.to] = payloadField(e)
		case bitwise:
			fields[e.to] = fields[e.from]
		case comparison:
			s.value(fields[e.from], e.data)
		case interval:
			s.value(fields[e.from], e.low)
			s.value(fields[e.from], e.high)
		case lookup:
			s.elements(t.sets[e.set], fields[e.from])
		case opaque, socketState:
			s.found.Opaque = true
		}
	}
}

func (s *scan) elements(set *set, kind fieldKind) {
	if set == nil || set.load() != nil || len(set.fields) > 1 {
		s.found.Opaque = true
		return
	}
	for i := range set.elements {
		s.value(kind, set.elements[i].low)
		s.value(kind, set.elements[i].high)
		if i > mostMentions {
			return
		}
	}
}

func metaField(key uint32) fieldKind {
	switch key {
	case unix.NFT_META_SKUID:
		return fieldUID
	case unix.NFT_META_SKGID:
		return fieldGID
	case metaMark:
		return fieldMark
	case metaIIFName:
		return fieldIn
	case metaOIFName:
		return fieldOut
	}
	return fieldOther
}

func payloadField(e payload) fieldKind {
	switch {
	case e.base == baseTransport && e.offset == 2 && e.size == 2:
		return fieldPort
	case e.base == baseNetwork && (e.offset == 12 && e.size <= 4 || e.offset == 8 && e.size > 4):
		return fieldSource
	case e.base == baseNetwork && (e.offset == 16 && e.size <= 4 || e.offset == 24):
		return fieldDest
	}
	return fieldOther
}

// value notes a constant that a field is compared with.
func (s *scan) value(kind fieldKind, data []byte) {
	if len(data) == 0 {
		return
	}
	number := func() uint32 {
		if len(data) < 4 {
			return 0
		}
		return binary.NativeEndian.Uint32(data)
	}
	f := &s.found
	switch kind {
	case fieldUID:
		add(&f.UIDs, number())
	case fieldGID:
		add(&f.GIDs, number())
	case fieldMark:
		add(&f.Marks, number())
	case fieldPort:
		add(&f.Ports, portOf(data))
	case fieldIn:
		add(&f.In, cString(data))
	case fieldOut:
		add(&f.Out, cString(data))
	case fieldSource:
		s.address(&f.Sources, data)
	case fieldDest:
		s.address(&f.Dests, data)
	}
}

// address notes an address, of which a rule may compare the first bytes alone.
func (s *scan) address(list *[]netip.Addr, data []byte) {
	n := 4
	if len(data) > 4 {
		n = 16
	}
	full := make([]byte, n)
	copy(full, data)
	if a, ok := netip.AddrFromSlice(full); ok {
		add(list, a)
	}
}

func add[T comparable](list *[]T, v T) {
	if len(*list) < mostMentions && !slices.Contains(*list, v) {
		*list = append(*list, v)
	}
}

// match scans a match of iptables.
func (s *scan) match(m matcher) {
	f := &s.found
	switch m := m.(type) {
	case *xtOwner:
		if m.match&ownerUID != 0 {
			add(&f.UIDs, m.uid.low)
			add(&f.UIDs, m.uid.high)
		}
		if m.match&(ownerGID|ownerGroups) != 0 {
			add(&f.GIDs, m.gid.low)
			add(&f.GIDs, m.gid.high)
		}
	case *xtPorts:
		s.ports(m.dst)
	case *xtMultiport:
		for _, r := range m.ranges {
			s.ports(r)
		}
	case *xtMark:
		add(&f.Marks, m.value)
	case *xtIPRange:
		if m.hasSrc {
			add(&f.Sources, m.src[0])
		}
		if m.hasDst {
			add(&f.Dests, m.dst[0])
		}
	}
}

func (s *scan) ports(r portRange) {
	if r.low == 0 && r.high == 0xffff {
		return
	}
	add(&s.found.Ports, r.low)
	add(&s.found.Ports, r.high)
}

// header scans the addresses and devices of an iptables-legacy rule.
func (s *scan) header(h *xtHeader) {
	f := &s.found
	masked := func(mask []byte) bool { return slices.ContainsFunc(mask, func(b byte) bool { return b != 0 }) }
	if masked(h.srcMask) {
		add(&f.Sources, h.src)
	}
	if masked(h.dstMask) {
		add(&f.Dests, h.dst)
	}
	if h.inMask[0] != 0 {
		add(&f.In, cString(h.in[:]))
	}
	if h.outMask[0] != 0 {
		add(&f.Out, cString(h.out[:]))
	}
}

// Chains lists the chains that are there, other than base chains.
func (r *Rules) Chains() []DivertingChain {
	var out []DivertingChain
	for _, t := range r.set.tables {
		if !r.meets(t) {
			continue
		}
		for _, name := range slices.Sorted(maps.Keys(t.chains)) {
			if c := t.chains[name]; c.base == nil {
				out = append(out, DivertingChain{Name: name, Table: t.name, Backend: t.backend, Family: t.family.String()})
			}
		}
	}
	return out
}

// Chain returns the first chain of that name; its name alone where there is none.
func (r *Rules) Chain(name string) DivertingChain {
	for _, c := range r.Chains() {
		if c.Name == name {
			return c
		}
	}
	return DivertingChain{Name: name}
}
