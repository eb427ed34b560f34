package check

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/replypath/replypath/internal/netstate"
	"github.com/replypath/replypath/pkg/trace"
)

// topologyOf makes a topology of links; what is not said is up.
func topologyOf(links ...netstate.Link) *netstate.Topology {
	t := &netstate.Topology{Links: make(map[netstate.Port]*netstate.Link)}
	for i := range links {
		l := &links[i]
		l.Up = true
		t.Links[l.Port] = l
		if !slices.Contains(t.Order, l.Netns) {
			t.Order = append(t.Order, l.Netns)
		}
	}
	return t
}

func at(ns, index uint32) netstate.Port { return netstate.Port{Netns: trace.Netns(ns), Index: index} }

// veth is a cable's end; its peer is somewhere else.
func veth(here, peer netstate.Port, master uint32) netstate.Link {
	return netstate.Link{Port: here, Kind: "veth", Lower: peer, Master: master}
}

func TestSegment(t *testing.T) {
	// Host 1 and host 2 are ports of a bridge in namespace 9, host 3 is wired to port 13 of it.
	lan := func(more ...netstate.Link) *netstate.Topology {
		return topologyOf(append([]netstate.Link{
			{Port: at(9, 1), Kind: "bridge"},
			veth(at(9, 11), at(1, 2), 1), veth(at(9, 12), at(2, 2), 1), veth(at(9, 13), at(3, 2), 1),
			veth(at(1, 2), at(9, 11), 0), veth(at(2, 2), at(9, 12), 0), veth(at(3, 2), at(9, 13), 0),
		}, more...)...)
	}
	vlan := func(ns, index uint32, tag int) netstate.Link {
		return netstate.Link{Port: at(ns, index), Kind: "vlan", Lower: at(ns, 2), VLAN: tag}
	}
	remote := func(ns uint32, vni int, local, far string) netstate.Link {
		return netstate.Link{Port: at(ns, 5), Kind: "vxlan", VNI: vni, Port4: 4789, Local: netip.MustParseAddr(local), Remote: netip.MustParseAddr(far)}
	}
	address := func(ns uint32, a string) netstate.Link {
		return netstate.Link{Port: at(ns, 6), Kind: "dummy", Addresses: []netip.Prefix{netip.MustParsePrefix(a)}}
	}
	tests := []struct {
		name     string
		topology *netstate.Topology
		out      netstate.Port
		want     []netstate.Port
		open     bool
	}{
		{"bridge", lan(), at(1, 2), []netstate.Port{at(2, 2), at(3, 2), at(9, 1)}, false},
		{"from the bridge itself", lan(), at(9, 1), []netstate.Port{at(1, 2), at(2, 2), at(3, 2)}, false},
		{"VLANs of one tag", lan(vlan(1, 7, 5), vlan(2, 7, 5), vlan(3, 7, 6)), at(1, 7), []netstate.Port{at(2, 7)}, false},
		{"a cable to nobody knows where", lan(veth(at(9, 14), netstate.Port{}, 1)), at(1, 2), []netstate.Port{at(2, 2), at(3, 2), at(9, 1)}, true},
		{"a physical port", lan(netstate.Link{Port: at(9, 14), Kind: "device", Master: 1}), at(1, 2), []netstate.Port{at(2, 2), at(3, 2), at(9, 1)}, true},
		{"macvlan", lan(netstate.Link{Port: at(4, 2), Kind: "macvlan", Lower: at(2, 2)}), at(1, 2), []netstate.Port{at(2, 2), at(3, 2), at(4, 2), at(9, 1)}, false},
		{"tunnel", lan(remote(1, 42, "10.0.0.1", "10.0.0.2"), remote(2, 42, "10.0.0.2", "10.0.0.1"), address(1, "10.0.0.1/24"), address(2, "10.0.0.2/24")),
			at(1, 5), []netstate.Port{at(2, 5)}, false},
		{"tunnel of another network", lan(remote(1, 42, "10.0.0.1", "10.0.0.2"), remote(2, 43, "10.0.0.2", "10.0.0.1"), address(2, "10.0.0.2/24")), at(1, 5), nil, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := segmentOf(tt.topology, tt.out)
			var got []netstate.Port
			for _, e := range s.endpoints {
				if e.link.Port != tt.out {
					got = append(got, e.link.Port)
				}
			}
			slices.SortFunc(got, func(a, b netstate.Port) int { return int(a.Netns)*100 + int(a.Index) - int(b.Netns)*100 - int(b.Index) })
			if diff := cmp.Diff(tt.want, got); diff != "" || s.open != tt.open {
				t.Errorf("open %t, want %t; (-want +got):\n%s", s.open, tt.open, diff)
			}
		})
	}
}

func TestAnswersFor(t *testing.T) {
	vip, vip6 := netip.MustParseAddr("203.0.113.80"), netip.MustParseAddr("2001:db8:80::80")
	lo := netstate.Link{Port: at(1, 1), Loopback: true, Addresses: []netip.Prefix{netip.PrefixFrom(vip, 32), netip.PrefixFrom(vip6, 128)}}
	for _, tt := range []struct {
		name   string
		addr   netip.Addr
		ignore int
		want   bool
	}{
		{"any of its addresses", vip, 0, true},
		{"hidden", vip, 1, false},
		{"IPv6 asks for the device's own", vip6, 0, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			topology := topologyOf(lo, netstate.Link{Port: at(1, 2), Kind: "veth", ARPIgnore: tt.ignore})
			if got := answersFor(topology, topology.Links[at(1, 2)], tt.addr); got != tt.want {
				t.Errorf("answers: %t, want %t", got, tt.want)
			}
		})
	}
}
