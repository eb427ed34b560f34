package probe

import (
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/replypath/replypath/pkg/trace"
)

func testDecoder() *decoder {
	s, err := parseSymbols(strings.NewReader("ffffffff81000000 T first\nffffffff81000100 t nft_do_chain\nffffffff81000200 T last\n"), nil)
	if err != nil {
		panic(err)
	}
	return newDecoder(reasonEnums{reasons{2: "NOT_SPECIFIED", 9: "NETFILTER_DROP"}, reasons{3: "NO_SOCKET"}}, fixedSymbols(s))
}

// fixedSymbols are symbols that are not read again.
func fixedSymbols(table *symbolTable) *symbols {
	s := newSymbols(nil)
	s.table, s.read = table, time.Now()
	s.modules, _ = readModules()
	return s
}

// record is an event as the ring buffer holds it.
func record(e dropEvent) []byte {
	return slices.Clone(unsafe.Slice((*byte)(unsafe.Pointer(&e)), unsafe.Sizeof(e)))
}

func recordConntrack(e dropEventConntrack) []byte {
	return slices.Clone(unsafe.Slice((*byte)(unsafe.Pointer(&e)), unsafe.Sizeof(e)))
}

func tuple4() dropTuple {
	t := dropTuple{Family: 2, Protocol: 6, Sport: 41822, Dport: 80}
	copy(t.Saddr[:], []byte{198, 51, 100, 7})
	copy(t.Daddr[:], []byte{203, 0, 113, 80})
	return t
}

func device(name string) (d [16]int8) {
	for i := range name {
		d[i] = int8(name[i])
	}
	return d
}

var want4 = trace.Tuple{Protocol: trace.TCP, Src: netip.MustParseAddrPort("198.51.100.7:41822"), Dst: netip.MustParseAddrPort("203.0.113.80:80")}

func TestDecodeDrop(t *testing.T) {
	e := dropEvent{
		Hook: uint16(dropHookHOOK_DROP), Netns: 4026531840, Ifindex: 2, Device: device("eth0"), Tuple: tuple4(), TcpFlags: 2,
		Seq: 7, Symbol: 0xffffffff81000123, Reason: 9, Flags: uint8(dropEventFlagEVENT_HAS_ROUTE), InIfindex: 2, OutIfindex: 3,
		IpLen: 1500, IpId: 7, Ttl: 63, IpFlags: uint8(dropIpFlagIP_FLAG_DF | dropIpFlagIP_FLAG_GROUP),
	}
	var ev trace.Event
	if err := testDecoder().decode(record(e), &ev); err != nil {
		t.Fatal(err)
	}
	if ev.Tuple != want4 || ev.Reason != "NETFILTER_DROP" || ev.Symbol != "nft_do_chain" || ev.Device != (trace.Device{Index: 2, Name: "eth0"}) ||
		!ev.HasRoute || ev.Flags != trace.SYN || ev.Netns != 4026531840 || ev.InIndex != 2 || ev.OutIndex != 3 || ev.Conntrack.Known() ||
		ev.Length != 1500 || ev.ID != 7 || ev.TTL != 63 || !ev.DontFragment || ev.MoreFragments || !ev.Group {
		t.Errorf("event = %+v", ev)
	}
}

func TestDecodeConntrack(t *testing.T) {
	e := dropEventConntrack{Event: dropEvent{Hook: uint16(dropHookHOOK_TRANSMIT), Tuple: tuple4(), Flags: uint8(dropEventFlagEVENT_HAS_CONNTRACK), CtInfo: 2}}
	e.Conntrack.Original = tuple4()
	e.Conntrack.Reply = dropTuple{Family: 10, Protocol: 6, Sport: 8080, Dport: 1}
	var ev trace.Event
	d := testDecoder()
	if err := d.decode(recordConntrack(e), &ev); err != nil {
		t.Fatal(err)
	}
	if ev.Conntrack.Original != want4 || ev.Conntrack.Reply.Src.Port() != 8080 || ev.Conntrack.Info != 2 {
		t.Errorf("conntrack = %+v", ev.Conntrack)
	}
	if err := d.decode(record(e.Event), &ev); err == nil {
		t.Error("a record without the conntrack that it announces is decoded")
	}
}

func TestDecodeMisses(t *testing.T) {
	d := testDecoder()
	var ev trace.Event
	for _, tt := range []struct {
		hook   dropHook
		reason int32
		want   syscall.Errno
	}{
		{dropHookHOOK_ROUTE_MISS4, -11, syscall.EAGAIN},
		{dropHookHOOK_ROUTE_MISS4, -113, syscall.EHOSTUNREACH},
		{dropHookHOOK_ROUTE_MISS6, 6, syscall.EINVAL},
		{dropHookHOOK_ROUTE_MISS6, 7, syscall.EHOSTUNREACH},
		{dropHookHOOK_ROUTE_MISS6, 8, syscall.EACCES},
	} {
		if err := d.decode(record(dropEvent{Hook: uint16(tt.hook), Reason: tt.reason}), &ev); err != nil || ev.Errno != tt.want {
			t.Errorf("hook %d, reason %d: %v, %v; want %v", tt.hook, tt.reason, ev.Errno, err, tt.want)
		}
	}
}

// A dual-stack socket shows IPv4 addresses in their mapped form.
// What routing refused names the drop on kernels that give no reason, and on those alone.
func TestDecodeRefusal(t *testing.T) {
	raw := record(dropEvent{Hook: uint16(dropHookHOOK_DROP), Tuple: tuple4(), Reason: -int32(syscall.EXDEV)})
	old := testDecoder()
	old.reasons = reasonEnums{}
	for want, d := range map[string]*decoder{"IP_RPFILTER": old, "": testDecoder()} {
		var ev trace.Event
		if err := d.decode(raw, &ev); err != nil || ev.Reason != want {
			t.Errorf("reason = %q, %v; want %q", ev.Reason, err, want)
		}
	}
}

func TestDecodeVerdict(t *testing.T) {
	tests := map[string]struct {
		family, hook uint8
		function     verdictFunction
		want         trace.Verdict
	}{
		"nft, IPv4":       {2, 2, verdictFunctionFUNCTION_NFT_CHAIN, trace.Verdict{By: trace.ByChain, Hook: trace.Forward, Family: "ip", Table: "t", Chain: "c"}},
		"legacy, IPv6":    {10, 1, verdictFunctionFUNCTION_IP_TABLE, trace.Verdict{By: trace.ByTable, Hook: trace.Input, Family: "ip6", Table: "t", Chain: "c"}},
		"device, egress":  {5, 1, verdictFunctionFUNCTION_HOOK_SLOW, trace.Verdict{By: trace.ByHook, Hook: trace.Egress, Family: "netdev", Table: "t", Chain: "c"}},
		"inet, ingress":   {1, 5, verdictFunctionFUNCTION_HOOK_SLOW, trace.Verdict{By: trace.ByHook, Hook: trace.Ingress, Family: "inet", Table: "t", Chain: "c"}},
		"unknown numbers": {77, 77, verdictFunctionFUNCTION_CONNTRACK, trace.Verdict{By: trace.ByConntrack, Table: "t", Chain: "c"}},
	}
	for name, tt := range tests {
		e := dropEventVerdict{Event: dropEvent{Hook: uint16(dropHookHOOK_VERDICT), Skb: 5, NfFamily: tt.family, NfHook: tt.hook, Function: uint8(tt.function)}}
		e.Table[0], e.Chain[0] = 't', 'c'
		raw := slices.Clone(unsafe.Slice((*byte)(unsafe.Pointer(&e)), unsafe.Sizeof(e)))
		var ev trace.Event
		if err := testDecoder().decode(raw, &ev); err != nil || ev.Verdict != tt.want || ev.SKB != 5 || ev.Hook != trace.HookVerdict {
			t.Errorf("%s: %+v, %v; want %+v", name, ev.Verdict, err, tt.want)
		}
		if err := testDecoder().decode(raw[:len(raw)-8], &ev); err == nil {
			t.Errorf("%s: a record that is too short is decoded", name)
		}
	}
}

func TestDecodeUnmaps(t *testing.T) {
	e := dropEvent{Hook: uint16(dropHookHOOK_SOCKET_STATE), Tuple: dropTuple{Family: 10, Protocol: 6}}
	e.Tuple.Daddr = netip.MustParseAddr("::ffff:192.0.2.1").As16()
	var ev trace.Event
	if err := testDecoder().decode(record(e), &ev); err != nil || ev.Tuple.Dst.Addr() != netip.MustParseAddr("192.0.2.1") {
		t.Errorf("destination = %s, %v", ev.Tuple.Dst, err)
	}
}

func TestDecodeDoesNotAllocate(t *testing.T) {
	d := testDecoder()
	raw := record(dropEvent{Hook: uint16(dropHookHOOK_DROP), Device: device("eth0"), Tuple: tuple4(), Symbol: 0xffffffff81000123, Reason: 9, Pid: 1, Comm: device("curl")})
	var ev trace.Event
	if n := testing.AllocsPerRun(1000, func() {
		if err := d.decode(raw, &ev); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations an event", n)
	}
}

func BenchmarkDecode(b *testing.B) {
	d := testDecoder()
	raw := record(dropEvent{Hook: uint16(dropHookHOOK_DROP), Device: device("eth0"), Tuple: tuple4(), Symbol: 0xffffffff81000123, Reason: 9})
	var ev trace.Event
	for b.Loop() {
		if err := d.decode(raw, &ev); err != nil {
			b.Fatal(err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(record(dropEvent{Hook: 1, Tuple: tuple4(), Flags: 0xff}))
	f.Add(recordConntrack(dropEventConntrack{}))
	f.Add([]byte{1})
	f.Fuzz(func(t *testing.T, raw []byte) {
		var ev trace.Event
		if err := testDecoder().decode(slices.Clone(raw), &ev); err == nil && len(raw) < eventSize {
			t.Errorf("%d bytes are decoded", len(raw))
		}
		_, _ = ev.Hook.String(), ev.Tuple.String()
	})
}

func TestSymbols(t *testing.T) {
	s, err := parseSymbols(strings.NewReader("ffffffff81000000 T first\nffffffff81000000 T alias\nffffffff81000040 D data\nffffffff81000100 t second\nffffffff81002000 t in_module [nf_tables]\nbroken\nzz T x\nffffffff81001000 T last\n"),
		parseModules(strings.NewReader("nf_tables 64 0 - Live 0xffffffff81002000\nbroken\n")))
	if err != nil {
		t.Fatal(err)
	}
	for addr, want := range map[uint64]string{
		0xffffffff80ffffff: "", 0xffffffff81000000: "first", 0xffffffff810000ff: "first", 0xffffffff81000100: "second", 0: "",
		0xffffffff8100203f: "in_module", 0xffffffff81002040: "", 0xffffffff81001fff: "",
	} {
		if got := s.name(addr); got != want {
			t.Errorf("name of %x is %q, want %q", addr, got, want)
		}
	}
	if len(s.addrs) != 4 {
		t.Errorf("%d symbols", len(s.addrs))
	}
}

func FuzzSymbols(f *testing.F) {
	f.Add("ffffffff81000000 T first\nffffffff81000100 t second [m]\n", uint64(0xffffffff81000001))
	f.Fuzz(func(t *testing.T, text string, addr uint64) {
		s, err := parseSymbols(strings.NewReader(text), parseModules(strings.NewReader(text)))
		if err != nil {
			return
		}
		s.name(addr)
		s.name(^uint64(0))
	})
}

func TestIgnoredBits(t *testing.T) {
	bits := ignoredBits(reasons{1: "CONSUMED", 70: "OTHERHOST", 9: "NETFILTER_DROP", 100000: "QUEUE_PURGE"}, 2)
	if bits[0] != 1<<1 || bits[1] != 1<<6 {
		t.Errorf("bits = %b", bits)
	}
}

// Open vSwitch's errors come in the place of a drop reason.
func TestDecodeUpcall(t *testing.T) {
	d := testDecoder()
	d.symbols.table.names = []byte(strings.Replace(string(d.symbols.table.names), "nft_do_chain", "ovs_dp_proce", 1))
	for name, tt := range map[string]struct {
		e      dropEvent
		symbol string
		errno  syscall.Errno
	}{
		"dropped for it":       {dropEvent{Symbol: 0xffffffff81000123, Reason: -111}, "ovs_dp_proce", syscall.ECONNREFUSED},
		"told by the function": {dropEvent{Function: uint8(verdictFunctionFUNCTION_UPCALL), Reason: -11}, upcallFunction, syscall.EAGAIN},
		"dropped elsewhere":    {dropEvent{Symbol: 0xffffffff81000001, Reason: -111}, "first", 0},
	} {
		var ev trace.Event
		tt.e.Hook, tt.e.Tuple = uint16(dropHookHOOK_DROP), tuple4()
		if err := d.decode(record(tt.e), &ev); err != nil || ev.Symbol != tt.symbol || ev.Errno != tt.errno || ev.Reason != "" {
			t.Errorf("%s: symbol %q, errno %v, reason %q, %v; want %q, %v", name, ev.Symbol, ev.Errno, ev.Reason, err, tt.symbol, tt.errno)
		}
	}
}

// A module's reasons are named where the module is loaded; a number alone is no name.
func TestModuleReasons(t *testing.T) {
	const lastAction = 3<<subsystemShift + 1
	want := ""
	if isLoaded("openvswitch") && readModuleReasons()[lastAction] != "" {
		want = "OVS_DROP_LAST_ACTION"
	}
	if got := testDecoder().dropReason(lastAction); got != want {
		t.Errorf("reason %#x is called %q, want %q", lastAction, got, want)
	}
}
