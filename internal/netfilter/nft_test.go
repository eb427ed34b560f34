package netfilter

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"

	"github.com/replypath/replypath/pkg/trace"
	"golang.org/x/sys/unix"
)

// Pieces of netlink messages.
func attr(kind uint16, data ...[]byte) []byte {
	return appendAttribute(nil, kind, bytes.Join(data, nil))
}

func num(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }

func text(s string) []byte { return append([]byte(s), 0) }

// expression is an entry of NFTA_RULE_EXPRESSIONS.
func expression(name string, data ...[]byte) []byte {
	return attr(nftaListElem, attr(unix.NFTA_EXPR_NAME, text(name)), attr(unix.NFTA_EXPR_DATA, data...))
}

// dropWeb is `tcp dport 80 counter packets 7 drop comment "hi"`.
func dropWeb() []byte {
	return bytes.Join([][]byte{
		attr(unix.NFTA_RULE_TABLE, text("t")), attr(unix.NFTA_RULE_CHAIN, text("in")), attr(unix.NFTA_RULE_HANDLE, []byte{0, 0, 0, 0, 0, 0, 0, 9}),
		attr(unix.NFTA_RULE_EXPRESSIONS,
			expression("meta", attr(unix.NFTA_META_KEY, num(metaL4Proto)), attr(unix.NFTA_META_DREG, num(1))),
			expression("cmp", attr(unix.NFTA_CMP_SREG, num(1)), attr(unix.NFTA_CMP_OP, num(0)), attr(unix.NFTA_CMP_DATA, attr(unix.NFTA_DATA_VALUE, []byte{6}))),
			expression("payload", attr(unix.NFTA_PAYLOAD_DREG, num(1)), attr(unix.NFTA_PAYLOAD_BASE, num(2)), attr(unix.NFTA_PAYLOAD_OFFSET, num(2)), attr(unix.NFTA_PAYLOAD_LEN, num(2))),
			expression("cmp", attr(unix.NFTA_CMP_SREG, num(1)), attr(unix.NFTA_CMP_OP, num(0)), attr(unix.NFTA_CMP_DATA, attr(unix.NFTA_DATA_VALUE, []byte{0, 80}))),
			expression("counter", attr(unix.NFTA_COUNTER_PACKETS, []byte{0, 0, 0, 0, 0, 0, 0, 7})),
			expression("immediate", attr(unix.NFTA_IMMEDIATE_DREG, num(0)), attr(unix.NFTA_IMMEDIATE_DATA,
				attr(unix.NFTA_DATA_VERDICT, attr(unix.NFTA_VERDICT_CODE, num(0)))))),
		attr(unix.NFTA_RULE_USERDATA, []byte{0, 3, 'h', 'i', 0}),
	}, nil)
}

func TestDecodeRule(t *testing.T) {
	s := build(false, nil)
	r, table, chain := decodeRule(dropWeb(), s.tables[0])
	if table != "t" || chain != "in" || r.handle != 9 || r.comment != "hi" || !r.counted || r.packets != 7 {
		t.Errorf("rule %+v of %q %q", r, table, chain)
	}
	if got, want := r.text(s.tables[0].chains["in"], nil), `tcp dport 80 counter drop comment "hi"`; got != want {
		t.Errorf("text %q, want %q", got, want)
	}
	results, err := r.evaluate(newPacket(syn(), trace.Interface{}, trace.Interface{}, trace.Input, nil), s.tables[0], true)
	if err != nil || len(results) != 1 || results[0].truth != yes || results[0].code != verdictDrop {
		t.Errorf("results %+v %v", results, err)
	}
}

// TestUnknownExpression has an expression that no library knows: the rule must
// not become one that matches everything.
func TestUnknownExpression(t *testing.T) {
	s := build(false, nil)
	b := attr(unix.NFTA_RULE_EXPRESSIONS, expression("osf", attr(1, num(1))), expression("immediate", attr(unix.NFTA_IMMEDIATE_DREG, num(0)),
		attr(unix.NFTA_IMMEDIATE_DATA, attr(unix.NFTA_DATA_VERDICT, attr(unix.NFTA_VERDICT_CODE, num(0))))))
	r, _, _ := decodeRule(b, s.tables[0])
	results, _ := r.evaluate(newPacket(syn(), trace.Interface{}, trace.Interface{}, trace.Input, nil), s.tables[0], true)
	if len(results) != 1 || results[0].truth != maybe {
		t.Errorf("results %+v", results)
	}
	if got, want := r.text(s.tables[0].chains["in"], nil), "osf … drop"; got != want {
		t.Errorf("text %q, want %q", got, want)
	}
}

func TestComment(t *testing.T) {
	tests := []struct {
		data []byte
		want string
	}{
		{[]byte{0, 3, 'h', 'i', 0}, "hi"},
		{[]byte{1, 1, 9, 0, 2, 'y', 0}, "y"},
		{[]byte{0, 200, 'h'}, ""},
		{[]byte{0}, ""},
		{nil, ""},
	}
	for _, tt := range tests {
		if got := commentOf(tt.data); got != tt.want {
			t.Errorf("%v: %q, want %q", tt.data, got, tt.want)
		}
	}
}

func FuzzComment(f *testing.F) {
	f.Add([]byte{0, 3, 'h', 'i', 0})
	f.Add([]byte{1, 1, 9, 0, 2, 'y', 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		if c := commentOf(b); len(c) > len(b) {
			t.Errorf("comment %q is longer than the data", c)
		}
	})
}

func FuzzRule(f *testing.F) {
	f.Add(dropWeb(), uint8(familyInet))
	for _, name := range []string{"immediate", "cmp", "range", "bitwise", "byteorder", "lookup", "payload", "meta", "ct", "fib", "reject", "log",
		"nat", "queue", "objref", "dynset", "limit", "match", "target", "counter", "quota", "exthdr"} {
		var data [][]byte
		for kind := range uint16(12) {
			data = append(data, attr(kind, num(uint32(kind))))
		}
		f.Add(attr(unix.NFTA_RULE_EXPRESSIONS, expression(name, data...), expression(name, attr(1, num(8)))), uint8(familyIP6))
	}
	f.Fuzz(func(t *testing.T, b []byte, fam uint8) {
		s := build(false, nil)
		tb := s.tables[0]
		tb.family = family(fam)
		tb.sets["m"] = &set{keySize: 2, elements: []element{{low: []byte{0, 80}}}}
		r, _, _ := decodeRule(b, tb)
		tb.chains["in"].rules = []rule{r}
		use(t, tb)
	})
}

func FuzzMessages(f *testing.F) {
	f.Add([]byte{20, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		s := &socket{}
		var elements []boundary
		_, _ = s.messages(b, func(_ family, b []byte) error {
			decodeChain(b)
			decodeTable(familyIP, b)
			decodeSet(b)
			elements = append(elements, decodeElement(b))
			return nil
		})
		for _, e := range ranges(elements, 4) {
			if e.high != nil && e.low == nil {
				t.Error("a range without start")
			}
		}
	})
}

func TestDecodeChain(t *testing.T) {
	b := bytes.Join([][]byte{
		attr(unix.NFTA_CHAIN_TABLE, text("t")), attr(unix.NFTA_CHAIN_NAME, text("in")), attr(unix.NFTA_CHAIN_TYPE, text("filter")),
		attr(unix.NFTA_CHAIN_POLICY, num(0)),
		attr(unix.NFTA_CHAIN_HOOK, attr(unix.NFTA_HOOK_HOOKNUM, num(1)), attr(unix.NFTA_HOOK_PRIORITY, num(0xffffffff)),
			attr(unix.NFTA_HOOK_DEV, text("eth0")), attr(nftaHookDevs, attr(nftaDeviceName, text("eth0")), attr(nftaDeviceName, text("eth1")))),
	}, nil)
	c, table := decodeChain(b)
	if table != "t" || c.name != "in" || c.base == nil || !c.base.drop || c.base.priority != -1 || c.base.hook != hookInput ||
		!slices.Equal(c.base.devices, []string{"eth0", "eth1"}) {
		t.Errorf("chain %+v %+v of %q", c, c.base, table)
	}
}

func TestBackend(t *testing.T) {
	tests := []struct {
		name, chain string
		family      family
		hook        uint32
		priority    int32
		want        string
	}{
		{"filter", "INPUT", familyIP, hookInput, 0, backendIPTablesNFT},
		{"nat", "POSTROUTING", familyIP6, hookPostrouting, 100, backendIPTablesNFT},
		{"filter", "input", familyIP, hookInput, 0, backendNFT},
		{"filter", "INPUT", familyInet, hookInput, 0, backendNFT},
		{"filter", "INPUT", familyIP, hookInput, 10, backendNFT},
		{"mine", "INPUT", familyIP, hookInput, 0, backendNFT},
	}
	for _, tt := range tests {
		tb := &table{name: tt.name, family: tt.family, chains: map[string]*chain{"user": {}, tt.chain: {name: tt.chain, base: &base{hook: tt.hook, priority: tt.priority}}}}
		if got := backendOf(tb); got != tt.want {
			t.Errorf("%+v: %q, want %q", tt, got, tt.want)
		}
	}
}

func TestGeneration(t *testing.T) {
	s := &socket{}
	s.note(7)
	s.note(7)
	if s.changed {
		t.Error("changed though it is the same generation")
	}
	s.note(8)
	if !s.changed {
		t.Error("another generation was not noted")
	}
}
