package netstate

import (
	"encoding/binary"
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// message joins a fixed header with attributes, as the kernel sends it.
func message(header []byte, attrs ...*nl.RtAttr) []byte {
	for _, a := range attrs {
		header = append(header, a.Serialize()...)
	}
	return header
}

func attr(kind int, value []byte) *nl.RtAttr { return nl.NewRtAttr(kind, value) }

var fuzzRoute = message(
	[]byte{unix.AF_INET, 24, 0, 0, unix.RT_TABLE_MAIN, 3, 0, unix.RTN_UNICAST, 0, 0, 0, 0},
	attr(unix.RTA_DST, []byte{198, 51, 100, 0}), attr(unix.RTA_TABLE, nl.Uint32Attr(70000)),
	attr(unix.RTA_PRIORITY, nl.Uint32Attr(100)), attr(unix.RTA_PREFSRC, []byte{10, 0, 0, 1}),
	attr(unix.RTA_MULTIPATH, message([]byte{16, 0, unix.RTNH_F_DEAD, 0, 3, 0, 0, 0}, attr(unix.RTA_GATEWAY, []byte{10, 0, 0, 2}))),
)

func TestParseRoute(t *testing.T) {
	r, err := parseRoute(fuzzRoute)
	must(t, err)
	if r.table != 70000 || r.metric != 100 || r.prefix.String() != "198.51.100.0/24" || r.preferred.String() != "10.0.0.1" {
		t.Errorf("route = %+v", r)
	}
	if len(r.hops) != 1 || r.hops[0] != (nexthop{gateway: netip.MustParseAddr("10.0.0.2"), device: 3, dead: true}) {
		t.Errorf("hops = %+v", r.hops)
	}
	if _, err := parseRoute(fuzzRoute[:11]); err == nil {
		t.Error("a truncated route was read")
	}
}

func FuzzParseRoute(f *testing.F) {
	f.Add(fuzzRoute)
	f.Add(message([]byte{unix.AF_INET6, 128, 0, 0, 255, 0, 0, unix.RTN_LOCAL, 0, 0, 0, 0},
		attr(unix.RTA_DST, make([]byte, 16)), attr(unix.RTA_OIF, nl.Uint32Attr(1)), attr(unix.RTA_VIA, []byte{2, 0, 10, 0, 0, 1})))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseRoute(b)
		if err != nil {
			return
		}
		if len(r.hops) > len(b)/unix.SizeofRtNexthop+1 {
			t.Errorf("%d next hops from %d bytes", len(r.hops), len(b))
		}
		key := flow{src: netip.MustParseAddr("198.51.100.1"), dst: netip.MustParseAddr("198.51.100.7")}
		if r.fits(key) && !r.prefix.Contains(key.dst) {
			t.Errorf("%+v fits %s", r, key.dst)
		}
		r.lookup(func(uint32) string { return "eth0" })
	})
}

func FuzzParseRule(f *testing.F) {
	f.Add(message([]byte{unix.AF_INET, 0, 24, 0, 100, 0, 0, ruleToTable, ruleInvert, 0, 0, 0},
		attr(unix.FRA_SRC, []byte{10, 0, 0, 0}), attr(unix.FRA_PRIORITY, nl.Uint32Attr(5)), attr(unix.FRA_FWMARK, nl.Uint32Attr(7)),
		attr(unix.FRA_IIFNAME, nl.ZeroTerminated("eth0")), attr(unix.FRA_SPORT_RANGE, nl.Uint32Attr(80))))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseRule(b)
		if err != nil {
			return
		}
		if text := r.String(); !strings.Contains(text, ": ") || strings.Contains(text, "invalid") {
			t.Errorf("String() = %q", text)
		}
		key := flow{src: netip.MustParseAddr("10.0.0.1"), dst: netip.MustParseAddr("10.0.0.2")}
		names := func(uint32) string { return "eth0" }
		straight := r
		straight.invert = !r.invert
		if r.matches(key, names, false) == straight.matches(key, names, false) {
			t.Error("a rule and its inversion agree")
		}
	})
}

func FuzzParseLink(f *testing.F) {
	f.Add(message(make([]byte, unix.SizeofIfInfomsg), attr(unix.IFLA_IFNAME, nl.ZeroTerminated("vrf0")),
		attr(unix.IFLA_LINKINFO, message(nil, attr(unix.IFLA_INFO_KIND, nl.NonZeroTerminated("vrf")),
			attr(unix.IFLA_INFO_DATA, attr(vrfTableAttribute, nl.Uint32Attr(10)).Serialize())))))
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := parseLink(b)
		if err == nil && (len(l.name)+len(l.kind) > len(b) || strings.Contains(l.name, "\x00")) {
			t.Errorf("link = %+v", l)
		}
	})
}

func TestParseLinkOfVRF(t *testing.T) {
	header := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(header[4:], 9)
	binary.NativeEndian.PutUint32(header[8:], unix.IFF_UP)
	l, err := parseLink(message(header, attr(unix.IFLA_IFNAME, nl.ZeroTerminated("red")), attr(unix.IFLA_MASTER, nl.Uint32Attr(4)),
		attr(unix.IFLA_LINKINFO|unix.NLA_F_NESTED, message(nil, attr(unix.IFLA_INFO_KIND, nl.ZeroTerminated("vrf")),
			attr(unix.IFLA_INFO_DATA, attr(vrfTableAttribute, nl.Uint32Attr(10)).Serialize())))))
	must(t, err)
	if want := (link{index: 9, name: "red", kind: "vrf", up: true, master: 4, vrfTable: 10}); l != want {
		t.Errorf("link = %+v, want %+v", l, want)
	}
}

func FuzzParseNetconf(f *testing.F) {
	f.Add(message([]byte{unix.AF_INET, 0, 0, 0}, attr(netconfForwarding, nl.Uint32Attr(1)), attr(netconfRPFilter, nl.Uint32Attr(2))))
	f.Fuzz(func(t *testing.T, b []byte) { parseNetconf(b) })
}

func FuzzParseNeighbor(f *testing.F) {
	f.Add(message([]byte{unix.AF_INET, 0, 0, 0, 3, 0, 0, 0, unix.NUD_FAILED, 0, unix.NTF_ROUTER, 1},
		attr(unix.NDA_DST, []byte{10, 0, 0, 1}), attr(unix.NDA_LLADDR, []byte{2, 0, 0, 0, 0, 1})))
	f.Fuzz(func(t *testing.T, b []byte) {
		n, err := parseNeighbor(b)
		if err != nil {
			return
		}
		if stateName(n.state) == "" || len(n.mac) > len(b) {
			t.Errorf("neighbor = %+v", n)
		}
		if n.resolved() && len(n.mac) == 0 {
			t.Errorf("%+v is resolved without a MAC", n)
		}
	})
}

func FuzzParseListener(f *testing.F) {
	header := make([]byte, sizeofDiagMessage)
	header[0] = unix.AF_INET6
	f.Add(message(header, attr(diagV6Only, []byte{1})))
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := parseListener(b)
		if err != nil {
			return
		}
		if !l.addr.Addr().IsValid() {
			t.Errorf("listener without address: %+v", l)
		}
		for _, dst := range []string{"10.0.0.1:80", "[fd00::1]:80"} {
			if addr := netip.MustParseAddrPort(dst); l.takes(addr, arrival{}) && l.addr.Port() != 80 {
				t.Errorf("%+v takes %s", l, dst)
			}
		}
	})
}

// FuzzDeliver reads whole datagrams: lengths of messages are as untrusted as those in them.
func FuzzDeliver(f *testing.F) {
	f.Add([]byte{20, 0, 0, 0, unix.NLMSG_ERROR, 0, 0, 0, 1, 0, 0, 0, 7, 0, 0, 0, 0xea, 0xff, 0xff, 0xff})
	f.Add([]byte{16, 0, 0, 0, unix.NLMSG_DONE, 0, unix.NLM_F_MULTI, 0, 1, 0, 0, 0, 7, 0, 0, 0})
	f.Add([]byte{17, 0, 0, 0, unix.RTM_NEWROUTE, 0, unix.NLM_F_MULTI, 0, 1, 0, 0, 0, 7, 0, 0, 0, 9})
	f.Fuzz(func(t *testing.T, b []byte) {
		s := &socket{fd: -1, port: 7}
		total := 0
		interrupted := false
		s.deliver(b, 1, func(payload []byte) bool { total += len(payload); return true }, &interrupted)
		if total > len(b) {
			t.Errorf("%d bytes of payload in %d bytes", total, len(b))
		}
	})
}

func FuzzParseSysctl(f *testing.F) {
	for _, text := range []string{"1\n", "0", "-1\n", "4294967296", " 2 ", "1\t2\n", ""} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		value, err := parseSysctl(b)
		if err == nil && (value > 1<<31-1 || value < -1<<31) {
			t.Errorf("parseSysctl(%q) = %d", b, value)
		}
	})
}

func FuzzParseProcess(f *testing.F) {
	for _, name := range []string{"1", "self", "0", "007", "-1", "99999999999", "12a"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if pid, ok := parseProcess(name); ok && pid <= 0 {
			t.Errorf("parseProcess(%q) = %d", name, pid)
		}
	})
}
