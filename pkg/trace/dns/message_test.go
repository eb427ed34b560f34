package dns

import (
	"bytes"
	"net/netip"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

// pack returns a message as miekg/dns writes it.
func pack(t testing.TB, change func(*dns.Msg)) []byte {
	t.Helper()
	m := new(dns.Msg)
	m.SetQuestion("www.example.test.", dns.TypeA)
	m.Id = 4711
	if change != nil {
		change(m)
	}
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func record(t testing.TB, text string) dns.RR {
	t.Helper()
	rr, err := dns.NewRR(text)
	if err != nil {
		t.Fatal(err)
	}
	return rr
}

func answered(t testing.TB) []byte {
	return pack(t, func(m *dns.Msg) {
		m.Response, m.Authoritative, m.RecursionAvailable, m.Compress = true, true, true, true
		m.Answer = []dns.RR{
			record(t, "www.example.test. 30 IN CNAME web.example.test."),
			record(t, "web.example.test. 3600 IN A 240.0.0.3"),
			record(t, "web.example.test. 60 IN AAAA 2001:db8::3"),
			record(t, `web.example.test. 60 IN TXT "one two" "three"`),
		}
		m.SetEdns0(1232, false)
	})
}

func TestParse(t *testing.T) {
	b := answered(t)
	m, err := Parse(b, len(b))
	if err != nil {
		t.Fatal(err)
	}
	if m.ID != 4711 || !m.Response || !m.AA || !m.RD || !m.RA || m.TC || m.Rcode != 0 || m.EDNS != 1232 || m.Cut {
		t.Errorf("header %+v", m)
	}
	if m.Name() != "www.example.test." || TypeName(m.Type) != "A" || ClassName(m.Class) != "IN" {
		t.Errorf("question %s %s %s", m.Name(), ClassName(m.Class), TypeName(m.Type))
	}
	if len(m.Records) != 4 {
		t.Fatalf("records %+v", m.Records)
	}
	if r := m.Records[0]; r.Data != "web.example.test." || r.TTL != 30 || r.Type != dns.TypeCNAME {
		t.Errorf("CNAME %+v", r)
	}
	if r := m.Records[1]; r.Addr != netip.MustParseAddr("240.0.0.3") || r.TTL != 3600 || r.Name != "web.example.test." || r.Data != "240.0.0.3" {
		t.Errorf("A %+v", r)
	}
	if r := m.Records[2]; r.Addr != netip.MustParseAddr("2001:db8::3") {
		t.Errorf("AAAA %+v", r)
	}
	if r := m.Records[3]; r.Data != `"one two" "three"` {
		t.Errorf("TXT %+v", r)
	}
}

// Whatever is missing at the end, what was there is told, and that something is missing.
func TestCut(t *testing.T) {
	b := answered(t)
	before := 0
	for n := range b {
		m, err := Parse(b[:n], len(b))
		if question := headerLength + len("www.example.test.") + 1 + 4; (err == nil) != (n >= question) {
			t.Fatalf("%d bytes: %v", n, err)
		}
		if err != nil {
			continue
		}
		if !m.Cut || m.Name() != "www.example.test." || len(m.Records) < before {
			t.Fatalf("%d bytes: %+v", n, m)
		}
		before = len(m.Records)
	}
	if before != 4 {
		t.Errorf("%d records without EDNS", before)
	}
}

func TestExtendedRcode(t *testing.T) {
	b := pack(t, func(m *dns.Msg) {
		m.Response = true
		m.SetEdns0(512, false)
		m.Rcode = dns.RcodeBadVers
	})
	m, err := Parse(b, len(b))
	if err != nil || RcodeName(m.Rcode) != "BADVERS" {
		t.Errorf("%v %+v", err, m)
	}
	for code, want := range map[uint16]string{0: "NOERROR", 2: "SERVFAIL", 3: "NXDOMAIN", 5: "REFUSED", 4000: "RCODE4000"} {
		if got := RcodeName(code); got != want {
			t.Errorf("rcode %d: %s, want %s", code, got, want)
		}
	}
}

func TestAddresses(t *testing.T) {
	b := answered(t)
	told := make(map[netip.Addr]uint32)
	tell := func(a netip.Addr, ttl uint32) { told[a] = ttl }
	Addresses(b, tell)
	if len(told) != 2 || told[netip.MustParseAddr("240.0.0.3")] != 3600 || told[netip.MustParseAddr("2001:db8::3")] != 60 {
		t.Errorf("%v", told)
	}
	for n := range b {
		Addresses(b[:n], tell) // as far as it goes
	}
	if len(told) != 2 {
		t.Errorf("of a message cut short: %v", told)
	}
	if allocs := testing.AllocsPerRun(100, func() { Addresses(b, func(netip.Addr, uint32) {}) }); allocs > 0 {
		t.Errorf("%v allocations", allocs)
	}
}

// A label may hold anything; its name must not be mistaken for another.
func TestEscapes(t *testing.T) {
	for _, name := range []string{`aa\.a.dp-1.mesh.`, `two\032words.test.`, `\000\255.test.`, `quote\".semi\;colon.`, `back\\slash.`, "."} {
		m := new(dns.Msg)
		m.SetQuestion(name, dns.TypeA)
		b, err := m.Pack()
		if err != nil {
			t.Fatal(name, err)
		}
		h, err := Peek(b)
		if err != nil {
			t.Fatal(name, err)
		}
		got := h.Name()
		again := new(dns.Msg)
		again.SetQuestion(got, dns.TypeA)
		c, err := again.Pack()
		if err != nil || !bytes.Equal(b[headerLength:], c[headerLength:]) {
			t.Errorf("%s came back as %s: another name", name, got)
		}
	}
	h, _ := Peek(pack(t, func(m *dns.Msg) { m.Question[0].Name = `aa\.a.dp-1.mesh.` }))
	if h.Name() != `aa\.a.dp-1.mesh.` {
		t.Errorf("shown as %s", h.Name())
	}
}

func TestKeys(t *testing.T) {
	keys := func(change func(*dns.Msg)) (Key, Key) {
		h, err := Peek(pack(t, change))
		if err != nil {
			t.Fatal(err)
		}
		return h.Keys()
	}
	message, name := keys(nil)
	if m, n := keys(func(m *dns.Msg) { m.Question[0].Name = "wWw.eXAMPLE.teST."; m.Response = true; m.Rcode = 2 }); m != message || n != name {
		t.Error("the answer, in another case, has another key")
	}
	if m, n := keys(func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeAAAA }); m == message || n != name {
		t.Error("another type: the same message, or another name")
	}
	if m, n := keys(func(m *dns.Msg) { m.Id++ }); m == message || n != name {
		t.Error("another id: the same message, or another name")
	}
	if m, n := keys(func(m *dns.Msg) { m.Question[0].Name = `www\.example.test.` }); m == message || n == name {
		t.Error("a dot in a label makes the same key")
	}
}

func TestNotDNS(t *testing.T) {
	for name, b := range map[string][]byte{
		"empty":     nil,
		"short":     make([]byte, 11),
		"text":      []byte("GET / HTTP/1.1\r\nHost: example.test\r\n\r\n"),
		"long name": append(make([]byte, 5), append([]byte{1, 0, 0, 0, 0, 0, 0}, []byte(strings.Repeat("\x01a", 200)+"\x00\x00\x01\x00\x01")...)...),
		"pointing":  {0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xc0, 12, 0, 1, 0, 1},
		"opcode":    {0, 1, 0x18, 0, 0, 0, 0, 0, 0, 0, 0, 0},
	} {
		if h, err := Peek(b); err == nil {
			t.Errorf("%s: %+v", name, h)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(answered(f), 300)
	f.Add(pack(f, nil), 0)
	f.Add([]byte{0, 1, 0x84, 0, 0, 1, 0xff, 0xff, 0, 0, 0, 0, 1, 'a', 0xc0, 12, 0, 1, 0, 1}, 20)
	f.Fuzz(func(t *testing.T, b []byte, length int) {
		Addresses(b, func(netip.Addr, uint32) {})
		m, err := Parse(b, length)
		if err != nil {
			return
		}
		m.Keys()
		if m.HasQuestion() && m.Name() == "" {
			t.Errorf("a question without a name: %x", b)
		}
		if len(m.Records) > maxRecords {
			t.Errorf("%d records", len(m.Records))
		}
	})
}

func BenchmarkPeek(b *testing.B) {
	m := answered(b)
	b.ReportAllocs()
	for b.Loop() {
		h, _ := Peek(m)
		h.Keys()
	}
}
