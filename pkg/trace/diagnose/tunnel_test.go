package diagnose

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/replypath/replypath/pkg/trace"
)

var lbPlace = trace.Place{Netns: 5, Name: "lb"}

// wrapped is a case about a tunnel's packet with a SYN in it, which be dropped.
func wrapped(reason, symbol string, change func(*trace.Case)) trace.Case {
	c := dropped(vip4, reason, symbol)
	c.Event.Carried = trace.Carried{Kind: "vxlan", ID: 42, Tuple: vip4, Flags: trace.SYN}
	c.Event.Tuple = trace.Tuple{Protocol: trace.UDP, Src: netip.MustParseAddrPort("10.2.0.10:50000"), Dst: netip.MustParseAddrPort("10.2.0.20:4789")}
	c.Event.Flags = 0
	if change != nil {
		change(&c)
	}
	return c
}

func vxlan(local, remote string, change func(*trace.Tunnel)) trace.Tunnel {
	t := trace.Tunnel{Device: vx0, Kind: "vxlan", ID: 42, Local: addr(local), Remote: addr(remote), Port: 4789, Up: true}
	if change != nil {
		change(&t)
	}
	return t
}

func far(p trace.Place, t trace.Tunnel, addrs ...string) trace.FarTunnel {
	f := trace.FarTunnel{Place: p, Tunnel: t}
	for _, a := range addrs {
		f.Addrs = append(f.Addrs, addr(a))
	}
	return f
}

func TestExplainTunnels(t *testing.T) {
	type own = []trace.Tunnel
	type others = []trace.FarTunnel
	vni := func(t *trace.Tunnel) { t.ID = 43 }
	port := func(t *trace.Tunnel) { t.Port = 8472 }
	any := func(t *trace.Tunnel) { t.External = true }
	down := func(t *trace.Tunnel) { t.Up = false }
	sender := far(lbPlace, vxlan("10.2.0.10", "10.2.0.20", nil), "10.2.0.10")
	router := trace.Place{Netns: 9, Name: "other"}
	ipip := func(c *trace.Case) {
		c.Event.Carried.Kind, c.Event.Carried.ID = "ip", 0
		c.Event.Tuple.Protocol = 4
		c.Event.Tuple = trace.Tuple{Protocol: 4, Src: netip.AddrPortFrom(addr("10.2.0.10"), 0), Dst: netip.AddrPortFrom(addr("10.2.0.20"), 0)}
	}
	silent := dropped(vip4, "NEIGH_FAILED", "neigh_invalidate")
	silent.Event.Device = vx0
	behind := func(mine, theirs trace.Tunnel) trace.HostState {
		return trace.HostState{Tunnels: own{mine}, NextHop: trace.Neighbor{Addr: addr("10.9.0.2"), State: "FAILED"},
			NextHopOwner: lbPlace, NextHopDevice: vx0, FarTunnels: others{far(lbPlace, theirs, "10.2.0.10", "10.9.0.2")}}
	}
	mine := func(change func(*trace.Tunnel)) trace.Tunnel { return vxlan("10.2.0.20", "10.2.0.10", change) }
	tests := map[string]struct {
		c     trace.Case
		s     trace.HostState
		id    string
		where string
		why   string
	}{
		"another VNI":        {wrapped("VXLAN_VNI_NOT_FOUND", "vxlan_rcv", nil), trace.HostState{Tunnels: own{mine(vni)}}, "tunnel-mismatch", "be", "42 arrived, 43 is configured"},
		"VNI, no reason":     {wrapped("", "vxlan_rcv", nil), trace.HostState{Tunnels: own{mine(vni)}}, "tunnel-mismatch", "be", "42 arrived, 43 is configured"},
		"another port":       {wrapped("NO_SOCKET", "__udp4_lib_rcv", nil), trace.HostState{Tunnels: own{mine(port)}}, "tunnel-mismatch", "be", "ports differ (4789 and 8472)"},
		"no tunnel":          {wrapped("NO_SOCKET", "__udp4_lib_rcv", nil), trace.HostState{}, "tunnel-mismatch", "be", "no tunnel of that kind"},
		"tunnel is down":     {wrapped("VXLAN_VNI_NOT_FOUND", "vxlan_rcv", nil), trace.HostState{Tunnels: own{mine(down)}}, "tunnel-mismatch", "be", "it is down"},
		"header":             {wrapped("VXLAN_INVALID_HDR", "vxlan_rcv", nil), trace.HostState{Tunnels: own{mine(nil)}}, "tunnel-mismatch", "be", "does not expect"},
		"of several tunnels": {wrapped("VXLAN_VNI_NOT_FOUND", "vxlan_rcv", nil), trace.HostState{Tunnels: own{vxlan("10.2.0.20", "10.2.0.99", nil), mine(vni)}}, "tunnel-mismatch", "be", "43 is configured"},
		"wrong remote": {wrapped("NO_SOCKET", "__udp4_lib_rcv", nil), trace.HostState{FarTunnels: others{sender, far(router, vxlan("10.2.0.30", "10.2.0.10", nil), "10.2.0.30")}},
			"tunnel-mismatch", "lb", "it is other that has"},
		"IP in IP of somebody else": {wrapped("NOT_SPECIFIED", "tunnel4_rcv", ipip), trace.HostState{Tunnels: own{{Device: vx0, Kind: "ipip", Local: addr("10.2.0.20"), Remote: addr("10.2.0.99"), Up: true}}},
			"tunnel-mismatch", "be", "its remote is 10.2.0.99"},
		"an outer packet that a rule dropped": {wrapped("NETFILTER_DROP", "nft_do_chain", nil), trace.HostState{Filters: []trace.FilterVerdict{rule(true)}}, "netfilter-drop", "be", "tunnel packet (vxlan) with the SYN"},
		"an outer packet without a route":     {wrapped("IP_INNOROUTES", "ip_error", nil), trace.HostState{Onward: noRoute()}, "vip-not-local", "be", ""},
		"ARP does not pass: VNI":              {silent, behind(mine(nil), vxlan("10.2.0.10", "10.2.0.20", vni)), "tunnel-mismatch", "lb", "VNIs differ"},
		"ARP does not pass: port":             {silent, behind(mine(nil), vxlan("10.2.0.10", "10.2.0.20", port)), "tunnel-mismatch", "lb", "ports differ"},
		"ARP does not pass: remote":           {silent, behind(vxlan("10.2.0.20", "10.2.0.77", nil), vxlan("10.2.0.10", "10.2.0.20", nil)), "tunnel-mismatch", "be", "is no address of lb"},
		"ends agree":                          {silent, behind(mine(nil), vxlan("10.2.0.10", "10.2.0.20", nil)), "neighbor-unresolved", "be", ""},
		"whoever sends chooses":               {silent, behind(mine(any), vxlan("10.2.0.10", "10.2.0.20", vni)), "neighbor-unresolved", "be", ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if !tt.s.Onward.Done {
				tt.s.Onward = found
			}
			f, ok := Explain(&tt.c, &tt.s)
			if !ok || f.ID != tt.id || f.Where.Place.Name != tt.where || !strings.Contains(f.Cause, tt.why) {
				t.Errorf("found %q at %s: %s; want %q at %s: %s", f.ID, f.Where.Place.Name, f.Cause, tt.id, tt.where, tt.why)
			}
			if tt.where == be.Name {
				checkComplete(t, &f)
			}
		})
	}
}

// Other namespaces are looked at only where a tunnel may be to blame.
func TestDependsOnTunnels(t *testing.T) {
	c := wrapped("VXLAN_VNI_NOT_FOUND", "vxlan_rcv", nil)
	if q, ok := Question(&c); !ok || !q.Tunnels || !DependsOnTunnels(&c, &trace.HostState{}) {
		t.Error("a tunnel's packet was dropped, and nobody asks for tunnels")
	}
	c = dropped(vip4, "NEIGH_FAILED", "neigh_invalidate")
	if DependsOnTunnels(&c, &trace.HostState{NextHopOwner: lbPlace}) {
		t.Error("the next hop is behind no tunnel")
	}
}
