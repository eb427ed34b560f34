package netfilter

import (
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"github.com/replypath/replypath/pkg/trace"
	"golang.org/x/sys/unix"
)

// blob builds a table as the kernel hands it out, for IPv4 or IPv6.
type blob struct {
	is6   bool
	bytes []byte
}

// standard appends an entry with a standard verdict.
func (b *blob) standard(v int32, packets uint64, matches ...[]byte) int {
	data := binary.NativeEndian.AppendUint32(nil, uint32(v))
	return b.entry("", append(data, 0, 0, 0, 0), packets, matches...)
}

// label appends the ERROR entry that names a chain.
func (b *blob) label(name string) int {
	data := make([]byte, 32)
	copy(data, name)
	return b.entry("ERROR", data, 0)
}

// entry appends an entry and returns its offset.
func (b *blob) entry(target string, data []byte, packets uint64, matches ...[]byte) int {
	l := layout4
	if b.is6 {
		l = layout6
	}
	at := len(b.bytes)
	e := make([]byte, l.header)
	binary.NativeEndian.PutUint64(e[l.counters:], packets)
	for _, m := range matches {
		e = append(e, m...)
	}
	binary.NativeEndian.PutUint16(e[l.targetOffset:], uint16(len(e)))
	e = append(e, extension(target, 0, data)...)
	binary.NativeEndian.PutUint16(e[l.targetOffset+2:], uint16(len(e)))
	b.bytes = append(b.bytes, e...)
	return at
}

// extension is a match or target with its data.
func extension(name string, revision uint8, data []byte) []byte {
	for len(data)%8 != 0 {
		data = append(data, 0)
	}
	e := binary.NativeEndian.AppendUint16(nil, uint16(targetHeader+len(data)))
	e = append(e, make([]byte, targetHeader-2)...)
	copy(e[2:31], name)
	e[31] = revision
	return append(e, data...)
}

// tcpTo is the match "-m tcp --dport port".
func tcpTo(port uint16) []byte {
	var d []byte
	for _, p := range []uint16{0, 0xffff, port, port} {
		d = binary.NativeEndian.AppendUint16(d, p)
	}
	return extension("tcp", 0, append(d, 0, 0, 0, 0))
}

// sample is a table filter: INPUT jumps to chain "user", which drops port 80;
// policy ACCEPT with 5 packets.
func sample(is6 bool) (legacyInfo, []byte) {
	b := &blob{is6: is6}
	// The chain's place is needed before it is there, so build twice.
	var about legacyInfo
	for user := 0; ; {
		*b = blob{is6: is6}
		about = legacyInfo{hooks: 1 << hookInput}
		about.entry[hookInput] = uint32(b.standard(int32(user), 3))
		about.underflow[hookInput] = uint32(b.standard(-2, 5))
		b.label("user")
		start := b.standard(-1, 2, extension("comment", 0, append([]byte("why"), make([]byte, 253)...)), tcpTo(80))
		b.standard(-5, 1)
		b.label("ERROR")
		if user == start {
			break
		}
		user = start
	}
	about.size = uint32(len(b.bytes))
	return about, b.bytes
}

func TestLegacyTable(t *testing.T) {
	for _, f := range []family{familyIP, familyIP6} {
		about, b := sample(f == familyIP6)
		table, err := decodeLegacyTable(f, "filter", about, b)
		if err != nil {
			t.Fatal(err)
		}
		input, user := table.chains["INPUT"], table.chains["user"]
		if input == nil || user == nil || len(table.chains) != 2 || len(input.rules) != 1 || len(user.rules) != 1 {
			t.Fatalf("%s: chains %+v", f, table.chains)
		}
		if input.base.drop || input.base.packets != 5 || input.base.priority != priorityFilter {
			t.Errorf("%s: base %+v", f, input.base)
		}
		r := user.rules[0]
		if r.comment != "why" || r.packets != 2 || r.line != 1 {
			t.Errorf("%s: rule %+v", f, r)
		}
		if got, want := r.text(user, nil), `-A user -m comment --comment "why" -m tcp --dport 80 -j DROP`; got != want {
			t.Errorf("%s: text %q, want %q", f, got, want)
		}
	}
}

func TestLegacyBroken(t *testing.T) {
	about, good := sample(false)
	broken := map[string]func([]byte, *legacyInfo) []byte{
		"cut":               func(b []byte, _ *legacyInfo) []byte { return b[:len(b)-1] },
		"next before start": func(b []byte, _ *legacyInfo) []byte { b[90], b[91] = 0, 0; return b },
		"target past end":   func(b []byte, _ *legacyInfo) []byte { b[88], b[89] = 0xff, 0xff; return b },
		"jump to nowhere":   func(b []byte, _ *legacyInfo) []byte { b[layout4.header+targetHeader]++; return b },
		"no chain at start": func(b []byte, i *legacyInfo) []byte { i.entry[hookInput] = 8; return b },
	}
	for name, change := range broken {
		i := about
		b := change(slices.Clone(good), &i)
		if _, err := decodeLegacyTable(familyIP, "filter", i, b); !errors.Is(err, errBroken) {
			t.Errorf("%s: %v, want %v", name, err, errBroken)
		}
	}
}

func FuzzLegacyTable(f *testing.F) {
	for _, is6 := range []bool{false, true} {
		about, b := sample(is6)
		f.Add(is6, about.hooks, about.entry[1], about.underflow[1], b)
	}
	f.Fuzz(func(t *testing.T, is6 bool, hooks, entry, underflow uint32, b []byte) {
		about := legacyInfo{hooks: hooks, size: uint32(len(b))}
		for h := range about.entry {
			about.entry[h], about.underflow[h] = entry, underflow
		}
		fam := familyIP
		if is6 {
			fam = familyIP6
		}
		table, err := decodeLegacyTable(fam, "filter", about, b)
		if err != nil {
			return
		}
		use(t, table)
	})
}

// use walks and writes everything in a table: nothing of it may panic.
func use(t *testing.T, tb *table) {
	t.Helper()
	s := &ruleset{tables: []*table{tb}}
	for _, hook := range []trace.NetfilterHook{trace.Input, trace.Forward, trace.Output} {
		found, _ := s.drops(newPacket(syn(), trace.Interface{}, trace.Interface{}, hook, nil))
		for _, d := range found {
			d.verdict(hook)
		}
	}
	for _, c := range tb.chains {
		for i := range c.rules {
			c.rules[i].text(c, nil)
		}
	}
}

func FuzzMatch(f *testing.F) {
	for _, name := range []string{"tcp", "udp", "multiport", "state", "conntrack", "comment", "mark", "addrtype", "iprange", "mac", "pkttype"} {
		for revision := range uint8(4) {
			f.Add(name, revision, make([]byte, 200), false)
			f.Add(name, revision, []byte{1, 2, 3}, true)
		}
	}
	f.Fuzz(func(t *testing.T, name string, revision uint8, data []byte, is6 bool) {
		s := build(false, []rule{list(decodeMatch(name, revision, data, is6), drops), list(decodeTarget(name, revision, data, is6))})
		use(t, s.tables[0])
	})
}

func TestMatches(t *testing.T) {
	u16 := func(list ...uint16) []byte {
		var b []byte
		for _, v := range list {
			b = binary.NativeEndian.AppendUint16(b, v)
		}
		return b
	}
	multiport := func(which uint8, invert uint8) []byte {
		b := append([]byte{which, 3}, u16(22, 80, 90)...)
		b = append(b, make([]byte, 24)...)
		b = append(b, 0, 1) // the second port opens a range
		return append(append(b, make([]byte, 13)...), invert)
	}
	mark := func(v, mask uint32, invert byte) []byte {
		b := binary.NativeEndian.AppendUint32(nil, v)
		return append(binary.NativeEndian.AppendUint32(b, mask), invert, 0, 0, 0)
	}
	tests := []struct {
		name     string
		revision uint8
		data     []byte
		want     truth
		text     string
	}{
		{"tcp", 0, tcpTo(80)[targetHeader:], yes, "-m tcp --dport 80"},
		{"tcp", 0, tcpTo(81)[targetHeader:], no, "-m tcp --dport 81"},
		{"tcp", 0, append(u16(0, 0xffff, 0, 0xffff), 0, 0x17, 0x02, 0), yes, "-m tcp --tcp-flags FIN,SYN,RST,ACK SYN"},
		{"tcp", 0, append(u16(0, 0xffff, 0, 0xffff), 0, 0x17, 0x02, 4), no, "-m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN"},
		{"udp", 0, append(u16(0, 0xffff, 80, 80), 0, 0), no, "-m udp --dport 80"},
		{"multiport", 1, multiport(1, 0), yes, "-m multiport --dports 22,80:90"},
		{"multiport", 1, multiport(1, 1), no, "-m multiport ! --dports 22,80:90"},
		{"multiport", 1, multiport(0, 0), no, "-m multiport --sports 22,80:90"},
		{"multiport", 1, multiport(2, 0), yes, "-m multiport --ports 22,80:90"},
		{"state", 0, native32(xtStateNew).data, yes, "-m state --state NEW"},
		{"mark", 1, mark(1, 0xff, 0), no, "-m mark --mark 0x1/0xff"},
		{"mark", 1, mark(0, 0xff, 0), yes, "-m mark --mark 0x0/0xff"},
		{"comment", 0, []byte("a\x1b[31m\"b\x00"), yes, `-m comment --comment "a\x1b[31m\"b"`},
		{"owner", 1, make([]byte, 32), maybe, ""},
		{"tcp", 0, []byte{1}, maybe, ""},
	}
	for _, tt := range tests {
		e := decodeMatch(tt.name, tt.revision, tt.data, false)
		m := machine{packet: newPacket(syn(), trace.Interface{}, trace.Interface{}, trace.Input, nil), match: yes}
		e.run(&m)
		if m.match != tt.want {
			t.Errorf("%s %v: %d, want %d", tt.name, tt.data, m.match, tt.want)
		}
		if x, ok := e.(xtMatch); tt.text != "" && (!ok || x.option() != tt.text) {
			t.Errorf("%s: text %q, want %q", tt.name, x.option(), tt.text)
		}
	}
}

func TestHeaderMatch(t *testing.T) {
	q := syn()
	dev := trace.Interface{Device: trace.Device{Index: 2, Name: "eth0"}}
	p := newPacket(q, dev, trace.Interface{}, trace.Input, nil)
	name := func(s string) (out [unix.IFNAMSIZ]byte) { copy(out[:], s); return out }
	wildcard := func(n int) (out [unix.IFNAMSIZ]byte) {
		for i := range n {
			out[i] = 0xff
		}
		return out
	}
	any4 := []byte{0, 0, 0, 0}
	header := func(change func(*xtHeader)) *xtHeader {
		h := &xtHeader{src: synTuple.Src.Addr(), dst: synTuple.Dst.Addr(), srcMask: any4, dstMask: any4}
		change(h)
		return h
	}
	tests := []struct {
		header *xtHeader
		want   truth
		text   string
	}{
		{header(func(h *xtHeader) {}), yes, ""},
		{header(func(h *xtHeader) { h.srcMask = []byte{255, 255, 0, 0} }), yes, "-s 10.0.0.1/16"},
		{header(func(h *xtHeader) { h.dst = synTuple.Src.Addr(); h.dstMask = []byte{255, 255, 255, 255} }), no, "-d 10.0.0.1/32"},
		{header(func(h *xtHeader) { h.srcMask = []byte{255, 0, 255, 0}; h.invert = invertSrc }), no, "! -s 10.0.0.1/255.0.255.0"},
		{header(func(h *xtHeader) { h.in, h.inMask = name("eth"), wildcard(3) }), yes, "-i eth+"},
		{header(func(h *xtHeader) { h.in, h.inMask = name("eth"), wildcard(4) }), no, "-i eth"},
		{header(func(h *xtHeader) { h.in, h.inMask, h.invert = name("lo"), wildcard(3), invertIn }), yes, "! -i lo"},
		{header(func(h *xtHeader) { h.out, h.outMask = name("eth0"), wildcard(5) }), no, "-o eth0"},
		{header(func(h *xtHeader) { h.protocol, h.hasProtocol = 17, true }), no, "-p udp"},
		{header(func(h *xtHeader) { h.fragment = true }), no, "-f"},
		{header(func(h *xtHeader) { h.tos = true }), maybe, ""},
	}
	for _, tt := range tests {
		if got := tt.header.matches(p); got != tt.want {
			t.Errorf("%q: %d, want %d", tt.text, got, tt.want)
		}
		if got := tt.header.option(); got != tt.text {
			t.Errorf("text %q, want %q", got, tt.text)
		}
	}
}
