package netstate

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/replypath/replypath/pkg/trace"
)

// anyRule matches all packets of a family.
func anyRule(is6 bool, change func(*rule)) rule {
	r := rule{action: ruleToTable, table: unix.RT_TABLE_MAIN, anyUser: true, suppressLength: -1, suppressGroup: -1}
	r.src, r.dst = netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("0.0.0.0/0")
	if is6 {
		r.src, r.dst = netip.MustParsePrefix("::/0"), netip.MustParsePrefix("::/0")
	}
	if change != nil {
		change(&r)
	}
	return r
}

func TestRuleMatches(t *testing.T) {
	f := flow{
		src: netip.MustParseAddr("10.0.0.1"), dst: netip.MustParseAddr("10.0.0.2"), protocol: trace.TCP,
		sport: 40000, dport: 80, mark: 0x12, iif: 3,
	}
	made := f
	made.iif = 0
	names := func(index uint32) string { return map[uint32]string{1: "lo", 3: "eth0", 4: "eth1"}[index] }
	for _, c := range []struct {
		name   string
		change func(*rule)
		flow   flow
		vrf    bool
		want   bool
	}{
		{"all", nil, f, false, true},
		{"source", func(r *rule) { r.src = netip.MustParsePrefix("10.0.0.0/31") }, f, false, true},
		{"other source", func(r *rule) { r.src = netip.MustParsePrefix("10.0.1.0/24") }, f, false, false},
		{"unknown source", func(r *rule) { r.src = netip.MustParsePrefix("10.0.0.0/8") }, flow{dst: f.dst}, false, false},
		{"not this source", func(r *rule) { r.src, r.invert = netip.MustParsePrefix("10.0.0.0/31"), true }, f, false, false},
		{"mark", func(r *rule) { r.mark, r.mask = 0x12, 0xffffffff }, f, false, true},
		{"masked mark", func(r *rule) { r.mark, r.mask = 0x10, 0xf0 }, f, false, true},
		{"other mark", func(r *rule) { r.mark, r.mask = 0x11, 0xffffffff }, f, false, false},
		{"no mark in mask", func(r *rule) { r.mask = 0xf0 }, f, false, false},
		{"in device", func(r *rule) { r.iif = "eth0" }, f, false, true},
		{"other in device", func(r *rule) { r.iif = "eth1" }, f, false, false},
		{"made here", func(r *rule) { r.iif = "lo" }, made, false, true},
		{"not made here", func(r *rule) { r.iif = "lo" }, f, false, false},
		{"out device", func(r *rule) { r.oif = "eth1" }, f, false, false},
		{"bound to out device", func(r *rule) { r.oif = "eth1" }, flow{src: f.src, dst: f.dst, oif: 4}, false, true},
		{"ports", func(r *rule) { r.sport, r.dport = span{40000, 40001}, span{80, 80} }, f, false, true},
		{"other port", func(r *rule) { r.dport = span{81, 90} }, f, false, false},
		{"protocol", func(r *rule) { r.protocol = trace.UDP }, f, false, false},
		{"root", func(r *rule) { r.users, r.anyUser = span{0, 10}, false }, f, false, true},
		{"another user", func(r *rule) { r.users, r.anyUser = span{5678, 5678}, false }, f, false, false},
		{"TOS", func(r *rule) { r.tos = 0x10 }, f, false, false},
		{"tunnel", func(r *rule) { r.unseen = true }, f, false, false},
		{"VRF", func(r *rule) { r.l3mdev = true }, f, true, true},
		{"no VRF", func(r *rule) { r.l3mdev = true }, f, false, false},
	} {
		if got := anyRule(false, c.change).matches(c.flow, names, c.vrf); got != c.want {
			t.Errorf("%s: matches = %v, want %v", c.name, got, c.want)
		}
	}
}

func TestRuleString(t *testing.T) {
	for _, c := range []struct {
		want   string
		change func(*rule)
	}{
		{"0: from all lookup main", nil},
		{"32765: not from all fwmark 0xca6c lookup 51820", func(r *rule) {
			r.priority, r.invert, r.mark, r.mask, r.table = 32765, true, 51820, 0xffffffff, 51820
		}},
		{"5: from all lookup main suppress_prefixlength 0", func(r *rule) { r.priority, r.suppressLength = 5, 0 }},
		{"9: from 10.0.0.0/8 to 10.1.1.1 fwmark 0x10/0xf0 iif eth0 oif eth1 uidrange 5-6 ipproto tcp sport 80 dport 81-82 prohibit", func(r *rule) {
			*r = rule{
				priority: 9, action: ruleProhibit, src: netip.MustParsePrefix("10.0.0.0/8"), dst: netip.MustParsePrefix("10.1.1.1/32"),
				mark: 0x10, mask: 0xf0, iif: "eth0", oif: "eth1", users: span{5, 6}, protocol: trace.TCP,
				sport: span{80, 80}, dport: span{81, 82}, suppressLength: -1, suppressGroup: -1,
			}
		}},
		{"7: from all ipproto 132 goto 100", func(r *rule) { r.priority, r.action, r.target, r.protocol = 7, ruleGoto, 100, 132 }},
		{"1000: from all lookup [l3mdev-table]", func(r *rule) { r.priority, r.l3mdev, r.table = 1000, true, 0 }},
	} {
		if got := anyRule(false, c.change).String(); got != c.want {
			t.Errorf("String() = %q, want %q", got, c.want)
		}
	}
}

func TestListenerTakes(t *testing.T) {
	at := func(addr string, change func(*listener)) listener {
		l := listener{family: unix.AF_INET6, addr: netip.MustParseAddrPort(addr)}
		if l.addr.Addr().Is4() {
			l.family = unix.AF_INET
		}
		if change != nil {
			change(&l)
		}
		return l
	}
	v4, v6 := netip.MustParseAddrPort("10.0.0.1:80"), netip.MustParseAddrPort("[fd00::1]:80")
	for _, c := range []struct {
		name string
		l    listener
		dst  netip.AddrPort
		from arrival
		want bool
	}{
		{"wildcard", at("0.0.0.0:80", nil), v4, arrival{}, true},
		{"other port", at("0.0.0.0:81", nil), v4, arrival{}, false},
		{"IPv4 for IPv6", at("0.0.0.0:80", nil), v6, arrival{}, false},
		{"dual stack", at("[::]:80", nil), v4, arrival{}, true},
		{"dual stack refused", at("[::]:80", func(l *listener) { l.v6Only = true }), v4, arrival{}, false},
		{"mapped address", at("[::ffff:10.0.0.1]:80", nil), v4, arrival{}, true},
		{"other mapped address", at("[::ffff:10.0.0.2]:80", nil), v4, arrival{}, false},
		{"IPv6 address for IPv4", at("[fd00::1]:80", nil), v4, arrival{}, false},
		{"IPv6 address", at("[fd00::1]:80", nil), v6, arrival{}, true},
		{"bound to this device", at("0.0.0.0:80", func(l *listener) { l.device = 3 }), v4, arrival{device: 3}, true},
		{"bound to its VRF", at("0.0.0.0:80", func(l *listener) { l.device = 9 }), v4, arrival{device: 3, vrf: 9}, true},
		{"not bound, in a VRF", at("0.0.0.0:80", nil), v4, arrival{device: 3, vrf: 9}, false},
		{"not bound, in a VRF that shares", at("0.0.0.0:80", nil), v4, arrival{device: 3, vrf: 9, acrossVRFs: true}, true},
		{"bound to another device", at("0.0.0.0:80", func(l *listener) { l.device = 4 }), v4, arrival{device: 3}, false},
		{"bound, device unknown", at("0.0.0.0:80", func(l *listener) { l.device = 4 }), v4, arrival{}, true},
	} {
		if got := c.l.takes(c.dst, c.from); got != c.want {
			t.Errorf("%s: takes = %v, want %v", c.name, got, c.want)
		}
	}
}

func TestRouteOrder(t *testing.T) {
	route4 := func(prefix string, metric uint32) route {
		return route{kind: unix.RTN_UNICAST, prefix: netip.MustParsePrefix(prefix), metric: metric, from: netip.MustParsePrefix("0.0.0.0/0")}
	}
	for _, c := range []struct {
		name         string
		better, than route
	}{
		{"longer prefix", route4("10.0.0.0/9", 9), route4("10.0.0.0/8", 1)},
		{"lower metric", route4("10.0.0.0/8", 1), route4("10.0.0.0/8", 2)},
		{
			"longer source", route{prefix: netip.MustParsePrefix("fd00::/8"), from: netip.MustParsePrefix("fd01::/16"), metric: 9},
			route{prefix: netip.MustParsePrefix("fd00::/8"), from: netip.MustParsePrefix("::/0"), metric: 1},
		},
	} {
		if !c.better.betterThan(c.than) || c.than.betterThan(c.better) {
			t.Errorf("%s: betterThan is wrong", c.name)
		}
	}
}

func TestRouteFits(t *testing.T) {
	f := flow{src: netip.MustParseAddr("fd02::1"), dst: netip.MustParseAddr("fd01::1")}
	alive := []nexthop{{device: 3, dead: true}, {device: 4}}
	for _, c := range []struct {
		name   string
		change func(*route)
		oif    uint32
		want   bool
	}{
		{"unicast", nil, 0, true},
		{"other prefix", func(r *route) { r.prefix = netip.MustParsePrefix("fd03::/16") }, 0, false},
		{"IPv4", func(r *route) { r.prefix = netip.MustParsePrefix("0.0.0.0/0") }, 0, false},
		{"for this source", func(r *route) { r.from = netip.MustParsePrefix("fd02::/16") }, 0, true},
		{"for another source", func(r *route) { r.from = netip.MustParsePrefix("fd03::/16") }, 0, false},
		{"one next hop lives", func(r *route) { r.hops = alive }, 0, true},
		{"all next hops dead", func(r *route) { r.hops = alive[:1] }, 0, false},
		{"reject needs no next hop", func(r *route) { r.kind, r.hops = unix.RTN_PROHIBIT, nil }, 0, true},
		{"dead reject", func(r *route) { r.kind, r.hops, r.dead = unix.RTN_PROHIBIT, nil, true }, 0, false},
		{"TOS", func(r *route) { r.tos = 8 }, 0, false},
		{"cache", func(r *route) { r.cloned = true }, 0, false},
		{"null entry", func(r *route) { r.kind, r.metric = unix.RTN_UNREACHABLE, nullMetric }, 0, false},
		{"this device", nil, 4, true},
		{"another device", nil, 5, false},
	} {
		r := route{kind: unix.RTN_UNICAST, prefix: netip.MustParsePrefix("fd01::/16"), from: netip.MustParsePrefix("::/0"), hops: alive[1:]}
		if c.change != nil {
			c.change(&r)
		}
		g := f
		g.oif = c.oif
		if got := r.fits(g); got != c.want {
			t.Errorf("%s: fits = %v, want %v", c.name, got, c.want)
		}
	}
}
