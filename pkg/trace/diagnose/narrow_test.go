package diagnose

import (
	"strings"
	"testing"

	"github.com/replypath/replypath/pkg/trace"
)

func TestExplainNarrow(t *testing.T) {
	port := trace.Narrow{Place: be, Device: eth0, Kind: "veth", MTU: 1400}
	far := trace.Narrow{Place: otherPlace, Device: vx0, Kind: "veth", MTU: 1400, Sender: eth0, SenderPlace: be, SenderMTU: 1500}
	tunnel := trace.Narrow{Place: be, Device: vx0, Kind: "vxlan", MTU: 1450}
	big := func(symbol string, length uint32) trace.Case {
		c := dropped(vip4, "NOT_SPECIFIED", symbol)
		c.Event.Length, c.Event.Flags = length, trace.ACK
		return c
	}
	bridged := big("ip6_fragment", 1500)
	bridged.Event.OtherHost = true
	reply := replyDropped(vip6, "", "br_dev_queue_push_xmit")
	reply.Event.Length, reply.Event.Flags = 1500, trace.ACK
	datagram := big("__dev_forward_skb", 1500)
	datagram.Event.Tuple.Protocol, datagram.Event.MoreFragments = trace.UDP, true
	for name, tt := range map[string]struct {
		c     trace.Case
		n     trace.Narrow
		at    trace.Place
		cause string
		fix   string
	}{
		"a bridge's port":                  {big("br_dev_queue_push_xmit", 1500), port, be, "whose MTU is 1400", "ip netns exec be ip link set dev eth0 mtu 1500"},
		"a bridge's port, br_netfilter":    {big("br_nf_dev_queue_xmit", 1500), port, be, "whose MTU is 1400", "mtu 1500"},
		"a bridge's port, IPv6":            {bridged, port, be, "whose MTU is 1400", "mtu 1500"},
		"before 5.17, the reply":           {reply, port, be, "2001:db8:80::50", "mtu 1500"},
		"the far end of a cable":           {big("__dev_forward_skb2", 1477), far, otherPlace, "eth0 of be, has an MTU of 1500", "ip netns exec r3 ip link set dev vx0 mtu 1500"},
		"a tunnel in a bridge":             {big("br_dev_queue_push_xmit", 1500), tunnel, be, "whose MTU is 1450", "# give the hosts on both sides an MTU of 1450"},
		"a first fragment":                 {datagram, port, be, "whose MTU is 1400", "mtu 1500"},
		"a VLAN's header more is taken":    {big("__dev_forward_skb2", 1404), port, trace.Place{}, "", ""},
		"the device is not known":          {big("__dev_forward_skb2", 1500), trace.Narrow{}, trace.Place{}, "", ""},
		"a router fragments, and says so":  {big("ip6_fragment", 1500), port, trace.Place{}, "", ""},
		"dropped there on another ground":  {big("br_dev_queue_push_xmit", 90), port, trace.Place{}, "", ""},
		"a filter's drop is none for size": {dropped(vip4, "NETFILTER_DROP", "br_nf_dev_queue_xmit"), port, trace.Place{}, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := trace.HostState{Onward: found}
			if DependsOnNarrow(&tt.c) {
				s.Narrow = tt.n
			}
			f, ok := Explain(&tt.c, &s)
			if tt.at.Netns == 0 {
				if ok && f.ID == mtuBlackhole.ID {
					t.Errorf("found %+v", f)
				}
				return
			}
			if _, asks := Question(&tt.c); !asks {
				t.Error("nobody asks")
			}
			if f.ID != mtuBlackhole.ID || f.Where.Place != tt.at || f.Confidence != trace.Certain || f.Direction != tt.c.Direction ||
				tt.cause != "203.0.113.80" && !strings.Contains(f.Cause, tt.cause) || !strings.Contains(f.Fix[0], tt.fix) {
				t.Fatalf("found %+v", f)
			}
			checkWords(t, &f)
		})
	}
}
