package netstate

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/replypath/replypath/pkg/trace"
)

// ask reads, and fails the test on an error or on parts that were not read.
func ask(t *testing.T, r *Reader, q trace.Question) trace.HostState {
	t.Helper()
	state, err := r.Read(context.Background(), q)
	must(t, err)
	if len(state.Unread) > 0 {
		t.Errorf("Unread = %q", state.Unread)
	}
	if state.ReadAt.IsZero() {
		t.Error("ReadAt is not set")
	}
	return state
}

func TestReadRPFilter(t *testing.T) {
	p := plans["ipv4"]
	h, _ := newHost(t, p)
	r := newTestReader(t, nil)
	for _, c := range []struct{ all, own, want string }{
		{"0", "0", "0"}, {"0", "1", "1"}, {"1", "0", "1"}, {"2", "1", "2"}, {"1", "2", "2"}, {"0", "2", "2"},
	} {
		h.sysctl("net/ipv4/conf/all/rp_filter", c.all)
		h.sysctl("net/ipv4/conf/eth1/rp_filter", c.own)
		state := ask(t, r, trace.Question{Place: h.place(), Packet: packet(p.client, p.vip), In: h.index("eth1"), Out: h.index("eth0")})
		in := state.In
		if in.Name != "eth1" || in.Kind != "veth" || !in.Up || in.Index != h.index("eth1") {
			t.Errorf("In = %+v, want eth1, veth, up", in)
		}
		if in.RPFilter != int(c.want[0]-'0') || in.RPFilterAll != int(c.all[0]-'0') {
			t.Errorf("all %s, eth1 %s: RPFilter = %d, RPFilterAll = %d, want %s", c.all, c.own, in.RPFilter, in.RPFilterAll, c.want)
		}
		if state.Out.Name != "eth0" || state.Out.RPFilterAll != int(c.all[0]-'0') {
			t.Errorf("Out = %+v, want eth0 with all = %s", state.Out, c.all)
		}
	}
}

func TestReadForwarding(t *testing.T) {
	r := newTestReader(t, nil)
	for _, c := range []struct {
		name, family string
		sysctls      [][2]string
		in           string
		want, all    bool
	}{
		{"IPv4 off", "ipv4", nil, "eth0", false, false},
		{"IPv4 on", "ipv4", [][2]string{{"ipv4/ip_forward", "1"}}, "eth0", true, true},
		{"IPv4 off on this device", "ipv4", [][2]string{{"ipv4/ip_forward", "1"}, {"ipv4/conf/eth0/forwarding", "0"}}, "eth0", false, true},
		{"IPv4 on on this device", "ipv4", [][2]string{{"ipv4/conf/eth0/forwarding", "1"}}, "eth0", true, false},
		{"IPv4 on on another device", "ipv4", [][2]string{{"ipv4/conf/eth1/forwarding", "1"}}, "eth0", false, false},
		{"IPv4 made here", "ipv4", [][2]string{{"ipv4/ip_forward", "1"}, {"ipv4/conf/eth0/forwarding", "0"}}, "", true, true},
		{"IPv6 off", "ipv6", [][2]string{{"ipv4/ip_forward", "1"}}, "eth0", false, false},
		{"IPv6 on", "ipv6", [][2]string{{"ipv6/conf/all/forwarding", "1"}}, "eth0", true, true},
		{"IPv6 on on this device is not enough", "ipv6", [][2]string{{"ipv6/conf/eth0/forwarding", "1"}}, "eth0", false, false},
		{"IPv6 forced on this device", "ipv6", [][2]string{{"ipv6/conf/eth0/force_forwarding", "1"}}, "eth0", true, false},
		{"IPv6 forced on another device", "ipv6", [][2]string{{"ipv6/conf/eth1/force_forwarding", "1"}}, "eth0", false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := plans[c.family]
			h, _ := newHost(t, p)
			for _, s := range c.sysctls {
				if strings.HasSuffix(s[0], "force_forwarding") {
					if _, err := os.Stat("/proc/sys/net/ipv6/conf/all/force_forwarding"); err != nil {
						t.Skip("kernel has no force_forwarding (6.17)")
					}
				}
				h.sysctl("net/"+s[0], s[1])
			}
			q := trace.Question{Place: h.place(), Packet: packet(p.client, p.vip)}
			if c.in != "" {
				q.In = h.index(c.in)
			}
			if got := ask(t, r, q); got.Forwarding != c.want || got.ForwardingAll != c.all {
				t.Errorf("Forwarding, ForwardingAll = %v, %v, want %v, %v", got.Forwarding, got.ForwardingAll, c.want, c.all)
			}
		})
	}
}

func TestReadBridgePortAsBridge(t *testing.T) {
	p := plans["ipv4"]
	h, _ := newHost(t, p)
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}
	if err := h.LinkAdd(bridge); err != nil {
		t.Skipf("kernel has no bridge: %v", err)
	}
	must(t, h.LinkSetMaster(h.device("eth1"), bridge))
	h.up("br0")
	h.address("br0", "10.0.9.1/24")
	h.sysctl("net/ipv4/conf/br0/rp_filter", "1")
	h.route(0, p.clients, "10.0.9.9", "br0")
	mac, _ := net.ParseMAC("02:00:00:00:00:09")
	h.neighbor("br0", "10.0.9.9", unix.NUD_REACHABLE, mac.String(), 0)
	r := newTestReader(t, nil)
	state := ask(t, r, trace.Question{Place: h.place(), Packet: packet(p.client, "10.0.9.1"), In: h.index("eth1"), SourceMAC: [6]byte(mac)})
	if state.In.Name != "br0" || state.In.Kind != "bridge" || state.In.RPFilter != 1 {
		t.Errorf("In = %+v, want the bridge", state.In)
	}
	if got := state.PreviousHop.String(); got != "10.0.9.9" {
		t.Errorf("PreviousHop = %s, want 10.0.9.9", got)
	}
	if !state.DstLocal {
		t.Error("DstLocal = false, want true")
	}
}

// IP sees a packet that came by a VRF's port as the VRF's, but asks the port's settings.
func TestReadVRFPort(t *testing.T) {
	p := plans["ipv4"]
	h, _ := newHost(t, p)
	if err := h.LinkAdd(&netlink.Vrf{LinkAttrs: netlink.LinkAttrs{Name: "red"}, Table: 300}); errors.Is(err, unix.EOPNOTSUPP) {
		t.Skip("this kernel has no VRF devices")
	} else {
		must(t, err)
	}
	must(t, h.LinkSetMaster(h.device("eth1"), h.device("red")))
	h.sysctl("net/ipv4/conf/eth1/rp_filter", "1")
	r := newTestReader(t, nil)
	q := trace.Question{Place: h.place(), Packet: packet(p.client, p.vip), In: h.index("red")}
	for name, arrived := range map[string]uint32{"red": 0, "eth1": h.index("eth1")} {
		q.Arrived = arrived
		if in := ask(t, r, q).In; in.Name != name || (in.RPFilter == 1) != (name == "eth1") {
			t.Errorf("seen on device %d: In = %+v, want %s", arrived, in, name)
		}
	}
	q.Arrived = h.index("eth0") // not its port
	if in := ask(t, r, q).In; in.Name != "red" {
		t.Errorf("In = %+v, want red", in)
	}
}

func TestReadMissingDevice(t *testing.T) {
	p := plans["ipv4"]
	h, _ := newHost(t, p)
	r := newTestReader(t, nil)
	state, err := r.Read(context.Background(), trace.Question{Place: h.place(), Packet: packet(p.client, p.vip), In: 9999})
	must(t, err)
	if want := []string{"in device: read device 9999: no such device"}; !slices.Equal(state.Unread, want) {
		t.Errorf("Unread = %q, want %q", state.Unread, want)
	}
	if got := describe(state.Onward); got != "ENETUNREACH" {
		t.Errorf("Onward = %s, want the answer without the device", got)
	}
	if state.In.Index != 9999 {
		t.Errorf("In.Index = %d, want 9999", state.In.Index)
	}
}

func TestReadNextHop(t *testing.T) {
	const mac = "02:00:00:00:00:01"
	r := newTestReader(t, nil)
	for family, p := range plans {
		t.Run(family, func(t *testing.T) {
			h, peer := newHost(t, p)
			defaultRoute(h, p)
			ownsVIP(h, p)
			out := trace.Question{Place: h.place(), Packet: packet(p.vip, p.client)}
			want := func(state trace.HostState, addr, name, mac string) {
				t.Helper()
				got := state.NextHop
				if got.Addr != netip.MustParseAddr(addr) || got.State != name || got.MAC != mac || got.Device.Name != "eth0" {
					t.Errorf("NextHop = %+v, want %s %s %s on eth0", got, addr, name, mac)
				}
			}
			want(ask(t, r, out), p.gw0, "", "")
			h.neighbor("eth0", p.gw0, unix.NUD_REACHABLE, mac, 0)
			want(ask(t, r, out), p.gw0, "REACHABLE", mac)
			h.neighbor("eth0", p.gw0, unix.NUD_PERMANENT, mac, 0)
			want(ask(t, r, out), p.gw0, "PERMANENT", mac)
			h.neighbor("eth0", p.gw0, unix.NUD_FAILED, "", 0)
			want(ask(t, r, out), p.gw0, "FAILED", "")

			// a gateway that is dead: the kernel's own states, for a packet that was sent
			must(t, peer.LinkSetDown(peer.device("peer0")))
			must(t, peer.LinkSetUp(peer.device("peer0")))
			dead := strings.TrimSuffix(p.gw0, "2") + "99"
			h.inside(func() error {
				c, err := net.Dial("udp", net.JoinHostPort(dead, "9"))
				if err == nil {
					c.Write([]byte("x"))
					c.Close()
				}
				return err
			})
			onLink := trace.Question{Place: h.place(), Packet: packet(p.vip, dead)}
			want(ask(t, r, onLink), dead, "INCOMPLETE", "")
			named := out
			named.NextHop, named.Out = netip.MustParseAddr(dead), h.index("eth0")
			want(ask(t, r, named), dead, "INCOMPLETE", "")
			named.Out, named.In = 0, h.index("eth0")
			want(ask(t, r, named), dead, "INCOMPLETE", "")
			named.Out, named.In = 0, 0 // on any device
			want(ask(t, r, named), dead, "INCOMPLETE", "")
		})
	}
}

func TestReadPreviousHop(t *testing.T) {
	router, stranger := "02:00:00:00:00:01", "02:00:00:00:00:02"
	mac, _ := net.ParseMAC(router)
	p := plans["ipv6"]
	h, _ := newHost(t, p)
	r := newTestReader(t, nil)
	q := trace.Question{Place: h.place(), Packet: packet(p.client, p.vip), In: h.index("eth1"), SourceMAC: [6]byte(mac)}
	want := func(addr string) {
		t.Helper()
		got := ask(t, r, q).PreviousHop
		if addr == "" && got.IsValid() || addr != "" && got.String() != addr {
			t.Errorf("PreviousHop = %v, want %q", got, addr)
		}
	}
	want("")
	h.neighbor("eth1", "fd00:2::7", unix.NUD_REACHABLE, stranger, 0)
	h.neighbor("eth0", "fd00:1::7", unix.NUD_REACHABLE, router, 0)
	h.neighbor("eth1", "10.0.2.7", unix.NUD_REACHABLE, router, 0)
	want("")
	h.neighbor("eth1", "fe80::7", unix.NUD_REACHABLE, router, 0)
	want("fe80::7")
	h.neighbor("eth1", "fd00:2::9", unix.NUD_STALE, router, 0)
	want("fd00:2::9")
	h.neighbor("eth1", "fd00:2::a", unix.NUD_REACHABLE, router, 0)
	want("fd00:2::a")

	q.Packet = packet(plans["ipv4"].client, plans["ipv4"].vip)
	want("10.0.2.7")
}

func TestReadGateways(t *testing.T) {
	r := newTestReader(t, nil)
	for family, p := range plans {
		t.Run(family, func(t *testing.T) {
			h, _ := newHost(t, p)
			h.route(0, p.clients, p.gw1, "eth1")
			h.route(0, p.any, p.gw0, "eth0", func(r *netlink.Route) { r.Priority = 200 })
			h.route(0, p.any, p.gw0+"1", "eth0", func(r *netlink.Route) { r.Priority = 100 })
			h.route(0, p.wide, p.gw0, "eth0")
			h.route(0, p.any, p.gw1+"2", "eth1", inTable(100))
			h.route(unix.RTN_BLACKHOLE, p.vips, "", "")
			want := []string{p.gw0 + "1 eth0", p.gw0 + " eth0", p.gw1 + " eth1", p.gw1 + "2 eth1"}
			if p.is6 {
				h.neighbor("eth1", "fe80::77", unix.NUD_STALE, "02:00:00:00:00:01", unix.NTF_ROUTER)
				h.neighbor("eth1", "fe80::78", unix.NUD_STALE, "02:00:00:00:00:02", 0)
				want = append(want, "fe80::77 eth1")
			}
			var got []string
			for _, g := range ask(t, r, trace.Question{Place: h.place(), Packet: packet(p.client, p.vip)}).Gateways {
				got = append(got, g.Addr.String()+" "+g.Device.Name)
			}
			if !slices.Equal(got, want) {
				t.Errorf("Gateways = %q, want %q", got, want)
			}
		})
	}
}

func TestReadMultipath(t *testing.T) {
	r := newTestReader(t, nil)
	for family, p := range plans {
		t.Run(family, func(t *testing.T) {
			h, _ := newHost(t, p)
			hop := func(gw, device string) *netlink.NexthopInfo {
				return &netlink.NexthopInfo{LinkIndex: int(h.index(device)), Gw: net.ParseIP(gw)}
			}
			h.route(0, p.any, "", "", func(r *netlink.Route) {
				r.MultiPath = []*netlink.NexthopInfo{hop(p.gw0, "eth0"), hop(p.gw1, "eth1")}
			})
			ownsVIP(h, p)
			state := ask(t, r, trace.Question{Place: h.place(), Packet: packet(p.client, p.vip), In: h.index("eth1")})
			ways := []string{
				"unicast " + p.any + " via " + p.gw0 + " dev eth0 table main",
				"unicast " + p.any + " via " + p.gw1 + " dev eth1 table main",
			}
			if got := describe(state.Back); !slices.Contains(ways, got) {
				t.Errorf("Back = %s, want one of %q", got, ways)
			}
			if len(state.Gateways) != 2 {
				t.Errorf("Gateways = %v, want both", state.Gateways)
			}
		})
	}
}

// Every device has a route to fe80::/64: only the one that the packet came in by leads back.
func TestReadLinkLocalPeer(t *testing.T) {
	p := plans["ipv6"]
	h, _ := newHost(t, p)
	h.address("eth0", "fe80::1:1/64")
	h.address("eth1", "fe80::1:2/64")
	r := newTestReader(t, nil)
	for device, own := range map[string]string{"eth0": "fe80::1:1", "eth1": "fe80::1:2"} {
		state := ask(t, r, trace.Question{Place: h.place(), Packet: packet("fe80::2", own), In: h.index(device)})
		if got, want := describe(state.Back), "unicast fe80::/64 dev "+device+" table main"; got != want || !state.DstLocal {
			t.Errorf("DstLocal = %v, Back = %s, want %s", state.DstLocal, got, want)
		}
		state = ask(t, r, trace.Question{Place: h.place(), Packet: packet(own, "fe80::2"), Out: h.index(device)})
		if got, want := describe(state.Onward), "unicast fe80::/64 dev "+device+" table main"; got != want {
			t.Errorf("Onward = %s, want %s", got, want)
		}
	}
}

func TestReadIPv4RouteViaIPv6(t *testing.T) {
	p := plans["ipv4"]
	h, _ := newHost(t, p)
	ownsVIP(h, p)
	h.address("eth0", plans["ipv6"].own0)
	h.route(0, p.any, "", "eth0", func(r *netlink.Route) {
		r.Via = &netlink.Via{AddrFamily: unix.AF_INET6, Addr: net.ParseIP("fd00:1::2")}
	})
	h.neighbor("eth0", "fd00:1::2", unix.NUD_REACHABLE, "02:00:00:00:00:01", 0)
	r := newTestReader(t, nil)
	state := ask(t, r, trace.Question{Place: h.place(), Packet: packet(p.vip, p.client)})
	if got, want := describe(state.Onward), "unicast 0.0.0.0/0 via fd00:1::2 dev eth0 table main"; got != want {
		t.Errorf("Onward = %s, want %s", got, want)
	}
	if state.NextHop.State != "REACHABLE" {
		t.Errorf("NextHop = %+v, want REACHABLE", state.NextHop)
	}
}

func TestReadListeners(t *testing.T) {
	r := newTestReader(t, nil)
	p4, p6 := plans["ipv4"], plans["ipv6"]
	for _, c := range []struct {
		name, network, addr string
		dst                 string
		want                []trace.Listener
	}{
		{"none", "", "", p4.vip, nil},
		{"other port", "tcp4", "0.0.0.0:81", p4.vip, nil},
		{"wildcard", "tcp4", "0.0.0.0:80", p4.vip, []trace.Listener{{Addr: netip.MustParseAddrPort("0.0.0.0:80"), Matches: true}}},
		{"this address", "tcp4", p4.vip + ":80", p4.vip, []trace.Listener{{Addr: netip.MustParseAddrPort(p4.vip + ":80"), Matches: true}}},
		{"loopback only", "tcp4", "127.0.0.1:80", p4.vip, []trace.Listener{{Addr: netip.MustParseAddrPort("127.0.0.1:80")}}},
		{"both families", "tcp", "[::]:80", p4.vip, []trace.Listener{{Addr: netip.MustParseAddrPort("[::]:80"), Matches: true}}},
		{"IPv6 only, asked for IPv4", "tcp6", "[::]:80", p4.vip, []trace.Listener{{Addr: netip.MustParseAddrPort("[::]:80"), V6Only: true}}},
		{"IPv6 only", "tcp6", "[::]:80", p6.vip, []trace.Listener{{Addr: netip.MustParseAddrPort("[::]:80"), Matches: true, V6Only: true}}},
		{"IPv6 address", "tcp6", "[" + p6.vip + "]:80", p6.vip, []trace.Listener{{Addr: netip.MustParseAddrPort("[" + p6.vip + "]:80"), Matches: true, V6Only: true}}},
		{"IPv6 loopback only", "tcp6", "[::1]:80", p6.vip, []trace.Listener{{Addr: netip.MustParseAddrPort("[::1]:80"), V6Only: true}}},
		{"IPv4 only, asked for IPv6", "tcp4", "0.0.0.0:80", p6.vip, []trace.Listener{{Addr: netip.MustParseAddrPort("0.0.0.0:80")}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			h, _ := newHost(t, p4)
			ownsVIP(h, p4)
			ownsVIP(h, p6)
			if c.network != "" {
				h.listen(c.network, c.addr)
			}
			src := p4.client
			if strings.Contains(c.dst, ":") {
				src = p6.client
			}
			got := ask(t, r, trace.Question{Place: h.place(), Packet: packet(src, c.dst), In: h.index("eth0")}).Listeners
			for i := range got {
				if got[i].Backlog <= 0 || got[i].Queue != 0 {
					t.Errorf("Listeners[%d] = %+v, want a backlog and an empty queue", i, got[i])
				}
			}
			if diff := cmp.Diff(c.want, got, cmpopts.IgnoreFields(trace.Listener{}, "Backlog"),
				cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
				t.Errorf("Listeners (-want +got):\n%s", diff)
			}
		})
	}
}

func TestReadListenerQueue(t *testing.T) {
	p := plans["ipv4"]
	h, _ := newHost(t, p)
	h.listen("tcp4", "127.0.0.1:80") // nobody accepts
	var conns []net.Conn
	h.inside(func() error {
		for range 3 {
			c, err := net.Dial("tcp4", "127.0.0.1:80")
			if err != nil {
				return err
			}
			conns = append(conns, c)
		}
		return nil
	})
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	r := newTestReader(t, nil)
	got := ask(t, r, trace.Question{Place: h.place(), Packet: packet("127.0.0.2", "127.0.0.1")}).Listeners
	if len(got) != 1 || got[0].Queue != 3 {
		t.Errorf("Listeners = %+v, want one with a queue of 3", got)
	}
}
