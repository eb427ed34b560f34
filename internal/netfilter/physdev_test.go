package netfilter

import (
	"net/netip"
	"os"
	"testing"

	"github.com/replypath/replypath/pkg/trace"
)

// TestBridgeNetfilter drops frames that cross a bridge by rules of their
// protocol: there the devices are the bridge, and its ports are told apart.
func TestBridgeNetfilter(t *testing.T) {
	a, bridge, b := newSpace(t), newSpace(t), newSpace(t)
	var missing error
	bridge.in(func() { _, missing = os.Stat("/proc/sys/net/bridge/bridge-nf-call-iptables") })
	if missing != nil {
		t.Skip("this kernel has no br_netfilter, or has not loaded it")
	}
	join(a, "a0", bridge, "p0")
	join(b, "b0", bridge, "p1")
	bridge.run("", "ip", "link", "add", "br0", "type", "bridge")
	bridge.run("", "ip", "link", "set", "p0", "master", "br0")
	bridge.run("", "ip", "link", "set", "p1", "master", "br0")
	bridge.run("", "ip", "link", "set", "br0", "up")
	bridge.set("net.bridge.bridge-nf-call-iptables=1")
	a.address("a0", "10.3.0.1/24")
	b.address("b0", "10.3.0.2/24")
	ear := b.listen()
	br0, p0 := bridge.index("br0"), bridge.index("p0")
	shoot := func(number uint32, port uint16) (trace.Tuple, bool) {
		tuple := trace.Tuple{Protocol: trace.TCP, Src: netip.MustParseAddrPort("10.3.0.1:1000"), Dst: netip.AddrPortFrom(netip.MustParseAddr("10.3.0.2"), port)}
		a.fire(shot{number: number, tuple: tuple, flags: trace.SYN})
		return tuple, ear.heard(t, 50e6)[number]
	}
	for try := range 200 { // a bridge needs a while until it forwards, and so does ARP
		if _, delivered := shoot(1, 9); delivered {
			break
		}
		if try == 199 {
			t.Fatal("the bridge does not forward")
		}
	}
	for i, c := range []struct {
		name, rule string // of iptables
		hook       trace.NetfilterHook
		dropped    bool
		certain    bool
	}{
		{"the bridge is the input device", "-A FORWARD -i br0 -p tcp -m tcp --dport 80 -j DROP", trace.Forward, true, true},
		{"the bridge is the output device", "-A FORWARD -o br0 -p tcp -m tcp --dport 80 -j DROP", trace.Forward, true, true},
		{"the port is not", "-A FORWARD -i p0 -p tcp -m tcp --dport 80 -j DROP", trace.Forward, false, false},
		{"the port of entry", "-A FORWARD -m physdev --physdev-in p0 -j DROP", trace.Forward, true, true},
		{"another port of entry", "-A FORWARD -m physdev --physdev-in p1 -j DROP", trace.Forward, false, false},
		{"not another port of entry", "-A FORWARD -m physdev ! --physdev-in p1 -j DROP", trace.Forward, true, true},
		{"any port of entry", "-A FORWARD -m physdev --physdev-is-in -j DROP", trace.Forward, true, true},
		{"the port of exit", "-A FORWARD -m physdev --physdev-out p1 -j DROP", trace.Forward, true, false},
		{"crossing", "-A FORWARD -m physdev --physdev-is-bridged -j DROP", trace.Forward, true, false},
	} {
		for _, tool := range []string{"iptables-nft", "iptables-legacy"} {
			t.Run(c.name+"/"+tool, func(t *testing.T) {
				bridge.run("*filter\n"+c.rule+"\nCOMMIT\n", tool+"-restore")
				defer bridge.run("*filter\nCOMMIT\n", tool+"-restore")
				tuple, delivered := shoot(uint32(100+i), 80)
				if delivered == c.dropped {
					t.Fatalf("delivered %v", delivered)
				}
				q := trace.Question{Packet: tuple, Flags: trace.SYN, In: p0, Out: br0, Filters: []trace.NetfilterHook{c.hook},
					Conntrack: trace.Conntrack{Original: tuple, Reply: tuple.Reverse(), Info: infoNew}}
				var found []trace.FilterVerdict
				bridge.do(func() (err error) {
					found, err = Verdicts(q, trace.Interface{Device: trace.Device{Index: p0, Name: "p0"}, Kind: "veth"}, trace.Interface{Device: trace.Device{Index: br0, Name: "br0"}, Kind: "bridge"})
					return err
				})
				switch {
				case !c.dropped && len(found) > 0:
					t.Errorf("delivered, but told: %+v", found)
				case c.dropped && (len(found) != 1 || found[0].Certain != c.certain && c.certain || found[0].Rule != c.rule):
					t.Errorf("want %s, got %+v", c.rule, found)
				}
			})
		}
	}
}

// TestQueue hands packets to a program that is not there.
func TestQueue(t *testing.T) {
	w := newWire(t)
	for _, tool := range []string{"iptables-nft", "iptables-legacy"} {
		t.Run(tool, func(t *testing.T) {
			if _, err := w.firewall.try("*filter\n-A FORWARD -p tcp --dport 80 -j NFQUEUE --queue-num 5\n-A FORWARD -p udp --dport 80 -j DROP\nCOMMIT\n", tool+"-restore"); err != nil {
				t.Skipf("this kernel has no NFQUEUE: %v", err)
			}
			defer w.firewall.run("*filter\nCOMMIT\n", tool+"-restore")
			n := w.trial(t, "FORWARD tcp 10.1.0.2:1000 10.2.0.2:80 SYN")
			if w.shoot(t, []*trial{n})[n.number] {
				t.Fatal("delivered")
			}
			w.verdict(t, n)
			if len(n.verdicts) != 1 || !n.verdicts[0].Queue || !n.verdicts[0].Certain || n.verdicts[0].Rule != "-A FORWARD -p tcp -m tcp --dport 80 -j NFQUEUE --queue-num 5" {
				t.Errorf("got %+v", n.verdicts)
			}
		})
	}
}
