package netfilter

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/replypath/replypath/pkg/trace"
)

// Pieces to build rules from.
var (
	drops    = decide{verdict{code: verdictDrop}}
	accepts  = decide{verdict{code: verdictAccept}}
	returns  = decide{verdict{code: verdictReturn}}
	unknown  = opaque{text: "limit"}
	rejects  = rejecting{}
	counting = passive{"counter"}
)

func jumpTo(chain string) expr { return decide{verdict{code: verdictJump, chain: chain}} }
func goTo(chain string) expr   { return decide{verdict{code: verdictGoto, chain: chain}} }

// dport matches the destination port.
func dport(n uint16) expr {
	return xtMatch{&xtPorts{protocol: trace.TCP, src: portRange{high: 0xffff}, dst: portRange{low: n, high: n}}}
}

// state matches bits of `ct state`.
func state(mask uint32) []expr {
	zero := []byte{0, 0, 0, 0}
	return []expr{connection{key: ctState, to: 8}, bitwise{from: 8, to: 8, size: 4, mask: native32(mask).data, xor: zero},
		comparison{from: 8, op: cmpNeq, data: zero}}
}

// markIs matches the mark.
func markIs(n uint32) []expr {
	return []expr{meta{key: metaMark, to: 8}, comparison{from: 8, op: cmpEq, data: native32(n).data}}
}

func list(parts ...any) rule {
	r := rule{}
	for _, p := range parts {
		switch p := p.(type) {
		case expr:
			r.exprs = append(r.exprs, p)
		case []expr:
			r.exprs = append(r.exprs, p...)
		case uint64:
			r.counter = counter{counted: true, packets: p}
		}
	}
	return r
}

// build makes a rule set with one base chain "in" at INPUT and others that it
// may jump to. Handles are chain position times 100 plus rule number.
func build(policyDrop bool, in []rule, others ...[]rule) *ruleset {
	t := &table{family: familyInet, name: "t", backend: backendNFT, chains: map[string]*chain{}, sets: map[string]*set{}}
	for i, rules := range append([][]rule{in}, others...) {
		c := &chain{table: t, name: fmt.Sprintf("u%d", i)}
		if i == 0 {
			c.name, c.base = "in", &base{hook: hookInput, kind: "filter", drop: policyDrop}
		}
		for j := range rules {
			rules[j].handle = uint64(100*i + j + 1)
		}
		c.rules = rules
		t.chains[c.name] = c
	}
	return &ruleset{tables: []*table{t}}
}

var synTuple = trace.Tuple{Protocol: trace.TCP, Src: netip.MustParseAddrPort("10.0.0.1:1000"), Dst: netip.MustParseAddrPort("10.0.0.2:80")}

// syn is a question about a new connection to port 80.
func syn() trace.Question {
	return trace.Question{Packet: synTuple, Flags: trace.SYN, In: 2,
		Conntrack: trace.Conntrack{Original: synTuple, Reply: synTuple.Reverse(), Info: infoNew}}
}

// told is the result in few words: handles, "policy", and "!" when certain.
func told(drops []drop) []string {
	out := []string{}
	for _, d := range drops {
		s := "policy"
		if d.rule != nil {
			s = fmt.Sprint(d.rule.handle)
		}
		if d.certain {
			s += "!"
		}
		out = append(out, s)
	}
	return out
}

func TestWalk(t *testing.T) {
	tests := []struct {
		name  string
		rules *ruleset
		want  []string
	}{
		{"drop", build(false, []rule{list(dport(80), drops)}), []string{"1!"}},
		{"other port", build(false, []rule{list(dport(81), drops)}), nil},
		{"policy", build(true, []rule{list(dport(81), accepts)}), []string{"policy!"}},
		{"accepted", build(true, []rule{list(dport(80), accepts), list(drops)}), nil},
		{"unknown accept", build(true, []rule{list(unknown, accepts)}), []string{"policy"}},
		{"unknown accept, never counted", build(true, []rule{list(unknown, accepts, uint64(0))}), []string{"policy!"}},
		{"unknown drop", build(false, []rule{list(unknown, drops)}), []string{"1"}},
		{"two candidates", build(true, []rule{list(unknown, drops), list(unknown, rejects)}), []string{"1", "2", "policy"}},
		{"candidate that never counted", build(true, []rule{list(unknown, drops, uint64(0)), list(unknown, rejects, uint64(7))}), []string{"2", "policy"}},
		{"unknown after a match that fails", build(false, []rule{list(unknown, dport(81), drops)}), nil},
		{"return", build(true, []rule{list(returns), list(accepts)}), []string{"policy!"}},
		{"jump", build(false, []rule{list(jumpTo("u1")), list(drops)}, []rule{list(dport(80), returns), list(drops)}), []string{"2!"}},
		{"drop in a chain", build(false, []rule{list(jumpTo("u1"))}, []rule{list(drops)}), []string{"101!"}},
		{"accept in a chain", build(true, []rule{list(jumpTo("u1"))}, []rule{list(accepts)}), nil},
		{"unknown jump that comes back", build(true, []rule{list(unknown, jumpTo("u1"))}, []rule{list(counting), list(returns)}), []string{"policy!"}},
		{"unknown jump that may end", build(true, []rule{list(unknown, jumpTo("u1"))}, []rule{list(accepts)}), []string{"policy"}},
		{"unknown return", build(false, []rule{list(jumpTo("u1"))}, []rule{list(unknown, returns), list(drops)}), []string{"102"}},
		{"unknown return that changes nothing", build(true, []rule{list(jumpTo("u1"))}, []rule{list(unknown, returns), list(counting)}), []string{"policy!"}},
		{"goto", build(true, []rule{list(goTo("u1")), list(accepts)}, []rule{list(counting)}), []string{"policy!"}},
		{"goto within a chain", build(false, []rule{list(jumpTo("u1")), list(drops)}, []rule{list(goTo("u2")), list(accepts)}, []rule{list(counting)}), []string{"2!"}},
		{"no such chain", build(true, []rule{list(jumpTo("nowhere"))}), []string{"policy"}},
		{"loop", build(true, []rule{list(jumpTo("u1"))}, []rule{list(jumpTo("u1"))}), []string{"policy"}},
		{"counter denies the drop", build(true, []rule{list(dport(80), drops, uint64(0))}), []string{"policy!"}},
		{"counter denies the only drop", build(false, []rule{list(dport(80), drops, uint64(0))}), []string{"1"}},
		{"new", build(false, []rule{list(state(stateNew), drops)}), []string{"1!"}},
		{"not established", build(true, []rule{list(state(stateEstablished|stateRelated), accepts)}), []string{"policy!"}},
		{"mark", build(false, []rule{list(markIs(0), drops)}), []string{"1!"}},
		{"queue", build(true, []rule{list(opaqueEnd{text: "queue", sure: true})}), nil},
		{"unknown target", build(true, []rule{list(opaqueEnd{text: "-j X"})}), []string{"policy"}},
		{"nat accepts", build(true, []rule{list(translate{text: "dnat"})}), nil},
		{"unknown set", build(true, []rule{list(lookup{from: 8, set: "gone"}, accepts)}), []string{"policy"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			drops, err := tt.rules.drops(newPacket(syn(), trace.Interface{}, trace.Interface{}, trace.Input, nil))
			if err != nil {
				t.Fatal(err)
			}
			if got := told(drops); !slices.Equal(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

// TestMarkWritten has rules that write the mark after others have read it: the
// packet's mark when dropped is not the one that those saw.
func TestMarkWritten(t *testing.T) {
	set5 := []expr{immediate{to: 8, data: native32(5).data}, setMeta{key: metaMark, from: 8}}
	tests := []struct {
		name  string
		rules []rule
		want  []string
	}{
		{"written, not read", []rule{list(set5), list(drops)}, []string{"2!"}},
		{"read after writing", []rule{list(set5), list(markIs(5), drops)}, []string{"2!"}},
		{"read before writing", []rule{list(markIs(5), accepts), list(set5), list(markIs(5), drops)}, []string{"3"}},
		{"other bits known", []rule{list(xtSetMark{value: 0x100, mask: 0x100}),
			list(meta{key: metaMark, to: 8}, bitwise{from: 8, to: 8, size: 4, mask: native32(0x100).data, xor: native32(0).data},
				comparison{from: 8, op: cmpEq, data: native32(0x100).data}, drops)}, []string{"2!"}},
	}
	for _, tt := range tests {
		q := syn()
		q.Mark = 5
		drops, err := build(false, tt.rules).drops(newPacket(q, trace.Interface{}, trace.Interface{}, trace.Input, nil))
		if got := told(drops); err != nil || !slices.Equal(got, tt.want) {
			t.Errorf("%s: got %q %v, want %q", tt.name, got, err, tt.want)
		}
	}
}

func TestWalkBounds(t *testing.T) {
	// Each chain jumps twice to the next, without knowing whether: 2^30 ways.
	var others [][]rule
	for i := range 30 {
		next := fmt.Sprintf("u%d", i+2)
		others = append(others, []rule{list(unknown, jumpTo(next)), list(unknown, jumpTo(next))})
	}
	others = append(others, []rule{list(unknown, drops)})
	drops, err := build(true, []rule{list(jumpTo("u1"))}, others...).drops(newPacket(syn(), trace.Interface{}, trace.Interface{}, trace.Input, nil))
	if !errors.Is(err, errSteps) {
		t.Errorf("error %v, want %v", err, errSteps)
	}
	for _, d := range drops {
		if d.certain {
			t.Errorf("certain though the walk was given up: %v", told(drops))
		}
	}
}

func TestWalkUnreadable(t *testing.T) {
	broken := errors.New("broken")
	s := build(true, []rule{list(jumpTo("u1"))}, nil)
	s.tables[0].chains["u1"].fetch = func(*chain) ([]rule, error) { return nil, broken }
	drops, err := s.drops(newPacket(syn(), trace.Interface{}, trace.Interface{}, trace.Input, nil))
	if !errors.Is(err, broken) || !slices.Equal(told(drops), []string{"policy"}) {
		t.Errorf("got %q %v", told(drops), err)
	}
}

// TestOrder has several base chains: the order is that of priorities, and an
// accept ends one chain only.
func TestOrder(t *testing.T) {
	add := func(s *ruleset, name string, priority int32, kind string, rules ...rule) {
		t := s.tables[0]
		t.chains[name] = &chain{table: t, name: name, rules: rules, base: &base{hook: hookInput, priority: priority, kind: kind}}
	}
	s := build(false, []rule{list(accepts)})
	add(s, "late", 10, "filter", list(drops))
	add(s, "early", -10, "filter", list(dport(22), drops))
	add(s, "nat", 5, "nat", list(dport(80), drops))
	p := newPacket(syn(), trace.Interface{}, trace.Interface{}, trace.Input, nil)
	var names []string
	for _, c := range s.bases(p) {
		names = append(names, c.name)
	}
	if want := []string{"early", "in", "nat", "late"}; !slices.Equal(names, want) {
		t.Errorf("order %v, want %v", names, want)
	}
	found, _ := s.drops(p)
	if len(found) != 1 || found[0].chain.name != "nat" || !found[0].certain {
		t.Errorf("new packet: %v", told(found))
	}
	q := syn()
	q.Conntrack.Info = infoEstablished
	if found, _ = s.drops(newPacket(q, trace.Interface{}, trace.Interface{}, trace.Input, nil)); len(found) != 1 || found[0].chain.name != "late" {
		t.Errorf("established packet: %v", told(found))
	}
	if found, _ = s.drops(newPacket(syn(), trace.Interface{}, trace.Interface{}, trace.Output, nil)); len(found) != 0 {
		t.Errorf("other hook: %v", told(found))
	}
}

func TestConntrackState(t *testing.T) {
	known := func(info uint8) trace.Conntrack {
		return trace.Conntrack{Original: synTuple, Reply: synTuple.Reverse(), Info: info}
	}
	tests := []struct {
		name      string
		conntrack trace.Conntrack
		flags     trace.TCPFlags
		protocol  trace.Protocol
		yes, open uint32
	}{
		{"established", known(0), trace.ACK, trace.TCP, stateEstablished, 0},
		{"related", known(1), trace.SYN, trace.TCP, stateRelated, 0},
		{"new", known(2), trace.SYN, trace.TCP, stateNew, 0},
		{"reply", known(3), trace.SYN | trace.ACK, trace.TCP, stateEstablished, 0},
		{"related reply", known(4), trace.ACK, trace.TCP, stateRelated, 0},
		{"untracked", trace.Conntrack{Info: 7}, trace.SYN, trace.TCP, stateUntracked, 0},
		{"SYN-ACK without entry", trace.Conntrack{}, trace.SYN | trace.ACK, trace.TCP, stateInvalid, 0},
		{"SYN without entry", trace.Conntrack{}, trace.SYN, trace.TCP, 0, stateInvalid | stateNew},
		{"UDP without entry", trace.Conntrack{}, 0, trace.UDP, 0, stateInvalid | stateNew},
	}
	for _, tt := range tests {
		q := trace.Question{Packet: synTuple, Flags: tt.flags, Conntrack: tt.conntrack}
		q.Packet.Protocol = tt.protocol
		e := conntrackEntry(q)
		for _, bit := range []uint32{stateInvalid, stateEstablished, stateRelated, stateNew, stateUntracked} {
			want := no
			switch {
			case tt.yes&bit != 0:
				want = yes
			case tt.open&bit != 0:
				want = maybe
			}
			if got := e.hasState(bit); got != want {
				t.Errorf("%s: state %#x: %d, want %d", tt.name, bit, got, want)
			}
		}
		if got := e.hasState(stateInvalid | stateNew | stateEstablished | stateRelated | stateUntracked); got != yes {
			t.Errorf("%s: any state: %d", tt.name, got)
		}
	}
}

// TestBeforeConntrack checks what chains before conntrack and before NAT see.
func TestBeforeConntrack(t *testing.T) {
	q := syn()
	q.Conntrack.Original.Dst = netip.MustParseAddrPort("10.96.0.1:80")
	p := newPacket(q, trace.Interface{}, trace.Interface{}, trace.Prerouting, nil)
	p.at(priorityRaw)
	if p.conntrack.hasState(stateInvalid) != yes || p.tuple.Dst != q.Conntrack.Original.Dst {
		t.Errorf("raw: state %#x, destination %s", p.conntrack.state, p.tuple.Dst)
	}
	p.at(priorityFilter)
	if p.conntrack.hasState(stateNew) != yes || p.tuple != q.Packet {
		t.Errorf("filter: state %#x, packet %s", p.conntrack.state, p.tuple)
	}
}

func TestBits(t *testing.T) {
	half := bits{data: []byte{0x12, 0x00}, known: []byte{0xff, 0x00}}
	tests := []struct {
		name      string
		got, want truth
	}{
		{"equal", half.equal([]byte{0x12, 0x34}), maybe},
		{"not equal", half.equal([]byte{0x13, 0x34}), no},
		{"known", knownBits([]byte{1}).equal([]byte{1}), yes},
		{"less", half.less([]byte{0x13, 0x00}), yes},
		{"not less", half.less([]byte{0x12, 0x00}), no},
		{"perhaps less", half.less([]byte{0x12, 0x80}), maybe},
		{"greater", half.greater([]byte{0x11, 0xff}), yes},
		{"not greater", half.greater([]byte{0x12, 0xff}), no},
		{"within", half.within([]byte{0x12, 0x00}, []byte{0x12, 0xff}), yes},
		{"outside", half.within([]byte{0x13, 0x00}, []byte{0x14, 0xff}), no},
		{"masked", half.maskXor([]byte{0xff, 0}, nil).equal([]byte{0x12, 0}), yes},
		{"other length", half.equal([]byte{0x12}), no},
	}
	for _, tt := range tests {
		if tt.got != tt.want {
			t.Errorf("%s: %d, want %d", tt.name, tt.got, tt.want)
		}
	}
}

func TestRegisters(t *testing.T) {
	var r registers
	r.store(1, knownBits([]byte{1, 2}))
	r.store(9, knownBits([]byte{3, 4, 5, 6}))
	if got := r.load(8, 8); !slices.Equal(got.data, []byte{1, 2, 0, 0, 3, 4, 5, 6}) || !got.whole() {
		t.Errorf("registers overlap wrongly: %v", got)
	}
	r.store(23, knownBits(make([]byte, 16))) // beyond the file
	r.store(99, knownBits([]byte{1}))
	if got := r.load(99, 4); got.whole() {
		t.Error("a register that does not exist is known")
	}
}

func TestShift(t *testing.T) {
	v := knownBits(binary.NativeEndian.AppendUint32(nil, 0x12345678))
	if got, _ := v.shifted(true, 8).masked32(); got != 0x34567800 {
		t.Errorf("left: %#x", got)
	}
	if got, _ := v.shifted(false, 8).masked32(); got != 0x00123456 {
		t.Errorf("right: %#x", got)
	}
}

func TestSets(t *testing.T) {
	port := func(n uint16) []byte { return network16(n).data }
	plain := &set{keySize: 2, elements: []element{{low: port(22)}, {low: port(80)}}}
	spans := &set{keySize: 2, interval: true, elements: ranges([]boundary{
		{element{low: port(0)}, true}, {element{low: port(100)}, false}, {element{low: port(201)}, true}, {element{low: port(60000)}, false}}, 2)}
	pairs := &set{keySize: 8, interval: true, fields: []int{4, 2}, elements: []element{
		{low: []byte{10, 0, 0, 0, 0, 80, 0, 0}, high: []byte{10, 255, 255, 255, 0, 90, 0, 0}}}}
	rest := &set{keySize: 2, elements: []element{{low: port(22), verdict: verdict{code: verdictDrop}}, {verdict: verdict{code: verdictAccept}}}}
	limited := &set{keySize: 2, elements: []element{{low: port(22), opaque: true}}}
	tests := []struct {
		name string
		set  *set
		key  bits
		want truth
	}{
		{"in", plain, network16(80), yes},
		{"out", plain, network16(81), no},
		{"unknown", plain, unknownBits(2), maybe},
		{"below", spans, network16(99), no},
		{"first", spans, network16(100), yes},
		{"last", spans, network16(200), yes},
		{"after", spans, network16(201), no},
		{"open end", spans, network16(65535), yes},
		{"pair", pairs, knownBits([]byte{10, 1, 2, 3, 0, 85, 0, 0}), yes},
		{"pair out", pairs, knownBits([]byte{10, 1, 2, 3, 0, 91, 0, 0}), no},
		{"pair half known", pairs, bits{data: []byte{10, 1, 2, 3, 0, 0, 0, 0}, known: []byte{255, 255, 255, 255, 0, 0, 255, 255}}, maybe},
		{"catch-all", rest, network16(23), yes},
		{"limit in element", limited, network16(22), maybe},
	}
	for _, tt := range tests {
		if got := tt.set.find(tt.key); got.match != tt.want {
			t.Errorf("%s: %d, want %d", tt.name, got.match, tt.want)
		}
	}
	if got := rest.find(unknownBits(2)); len(got.elements) != 2 {
		t.Errorf("a key that is not known may be %d elements, want 2", len(got.elements))
	}
}

// TestVerdictMapUnknown has a map of which the key is not known: each of its
// verdicts may be given.
func TestVerdictMapUnknown(t *testing.T) {
	s := build(true, []rule{list(lookup{from: 8, set: "m", isMap: true})})
	s.tables[0].sets["m"] = &set{keySize: 2, elements: []element{{low: []byte{0, 1}, verdict: verdict{code: verdictDrop}},
		{low: []byte{0, 2}, verdict: verdict{code: verdictAccept}}}}
	found, err := s.drops(newPacket(syn(), trace.Interface{}, trace.Interface{}, trace.Input, nil))
	if got := told(found); err != nil || !slices.Equal(got, []string{"1", "policy"}) {
		t.Errorf("got %q %v", got, err)
	}
}

// TestEqualPriorities has two tables that drop at one priority: the order is
// not known, so both are candidates, unless a counter tells.
func TestEqualPriorities(t *testing.T) {
	for _, tt := range []struct {
		packets uint64
		want    []string
	}{{3, []string{"1", "1"}}, {0, []string{"1!"}}} {
		a, b := build(false, []rule{list(drops, uint64(3))}), build(false, []rule{list(drops, tt.packets)})
		s := &ruleset{tables: append(a.tables, b.tables...)}
		a.tables[0].handle = 2
		found, _ := s.drops(newPacket(syn(), trace.Interface{}, trace.Interface{}, trace.Input, nil))
		if got := told(found); !slices.Equal(got, tt.want) {
			t.Errorf("counter %d: got %q, want %q", tt.packets, got, tt.want)
		}
	}
}
