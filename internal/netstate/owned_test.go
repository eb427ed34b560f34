package netstate

import (
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/replypath/replypath/pkg/trace"
)

// TestReadOwned: a service's address is on lo or by itself, one of a link is not.
func TestReadOwned(t *testing.T) {
	needRoot(t)
	reader := newTestReader(t, nil)
	for family, p := range plans {
		h, _ := newHost(t, p)
		ownsVIP(h, p)
		pod := newSpace(t)
		h.connect("veth0", pod, "eth0")
		pod.address("eth0", p.gw1+p.single[len(p.client):])
		h.address("eth1", p.otherClient+p.single[len(p.client):])
		h.route(unix.RTN_LOCAL, p.wide, "", "lo", func(r *netlink.Route) { r.Scope, r.Table = netlink.SCOPE_HOST, unix.RT_TABLE_LOCAL })
		own := netip.MustParsePrefix(p.own0).Addr().String()
		for _, test := range []struct {
			about  string
			packet trace.Tuple
			want   bool
		}{
			{"on lo", packet(p.gw0, p.vip), true},
			{"its answer", packet(p.vip, p.gw0), true},
			{"by itself on a link's device", packet(p.gw0, p.otherClient), true},
			{"by a local route", packet(p.gw0, p.client), true},
			{"of a link", packet(p.gw0, own), false},
			{"of nobody here", packet(p.gw0, p.gw1), false},
		} {
			state, err := reader.Read(t.Context(), trace.Question{Place: h.place(), Packet: test.packet, In: h.index("eth0")})
			must(t, err)
			if state.Virtual != test.want || len(state.Unread) > 0 {
				t.Errorf("%s, %s: virtual %v, want %v; unread %q", family, test.about, state.Virtual, test.want, state.Unread)
			}
		}
		state, err := reader.Read(t.Context(), trace.Question{Place: pod.place(), Packet: packet(p.client, p.gw1), In: pod.index("eth0")})
		must(t, err)
		if !state.DstLocal || state.Virtual {
			t.Errorf("%s: a pod's only address is taken for a service's", family)
		}
	}
}
