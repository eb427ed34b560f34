package netfilter

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/replypath/replypath/pkg/trace"
)

// TestBridge drops frames that cross a bridge, and frames for the bridge's host.
func TestBridge(t *testing.T) {
	a, bridge, b := newSpace(t), newSpace(t), newSpace(t)
	join(a, "a0", bridge, "p0")
	join(b, "b0", bridge, "p1")
	bridge.run("", "ip", "link", "add", "br0", "type", "bridge")
	bridge.run("", "ip", "link", "set", "p0", "master", "br0")
	bridge.run("", "ip", "link", "set", "p1", "master", "br0")
	bridge.run("", "ip", "link", "set", "br0", "up")
	a.address("a0", "10.3.0.1/24")
	b.address("b0", "10.3.0.2/24")
	bridge.address("br0", "10.3.0.9/24")
	bridge.run(`table bridge f {
 chain pre {
  type filter hook prerouting priority -300; policy accept;
  ether type ip tcp dport 81 drop
 }
 chain across {
  type filter hook forward priority 0; policy accept;
  iifname "p0" oifname "p1" ether type ip tcp dport 80 counter drop
 }
 chain local {
  type filter hook input priority 0; policy accept;
  iifname "p0" tcp dport 82 drop
 }
}
`, "nft", "-f", "-")
	port := func(name string) trace.Interface {
		return trace.Interface{Device: trace.Device{Index: bridge.index(name), Name: name}, Kind: "veth"}
	}
	// The kernel loads modules for the first question; on a slow machine that takes longer than an answer may.
	bridge.do(func() error {
		_, _ = Verdicts(trace.Question{Packet: trace.Tuple{Protocol: trace.TCP, Src: netip.MustParseAddrPort("10.3.0.1:1000"), Dst: netip.MustParseAddrPort("10.3.0.2:80")},
			Filters: []trace.NetfilterHook{trace.Prerouting}}, trace.Interface{}, trace.Interface{})
		return nil
	})
	ears := map[string]*ear{"10.3.0.2": b.listen(), "10.3.0.9": bridge.listen()}
	// A port forwards only when the kernel has noticed its carrier.
	through := shot{number: 1, tuple: trace.Tuple{Protocol: trace.TCP, Src: netip.MustParseAddrPort("10.3.0.1:1000"), Dst: netip.MustParseAddrPort("10.3.0.2:82")}, flags: trace.SYN}
	for until := time.Now().Add(5 * time.Second); ; {
		a.fire(through)
		if ears["10.3.0.2"].heard(t, 100*time.Millisecond)[through.number] {
			break
		}
		if time.Now().After(until) {
			t.Fatal("the bridge forwards nothing")
		}
	}
	for i, c := range []struct {
		to   string
		want string // chain
		rule string
	}{
		{"10.3.0.2:80", "across", `iifname "p0" oifname "p1" ether type ip tcp dport 80 counter drop`},
		{"10.3.0.2:81", "pre", "ether type ip tcp dport 81 drop"},
		{"10.3.0.9:82", "local", `iifname "p0" tcp dport 82 drop`},
		{"10.3.0.9:83", "", ""},
		{"10.3.0.2:82", "", ""},
	} {
		tuple := trace.Tuple{Protocol: trace.TCP, Src: netip.MustParseAddrPort("10.3.0.1:1000"), Dst: netip.MustParseAddrPort(c.to)}
		in := port("p0")
		q := trace.Question{Packet: tuple, Flags: trace.SYN, In: in.Index, Filters: []trace.NetfilterHook{trace.Prerouting, trace.Ingress}}
		out := trace.Interface{}
		if c.want == "across" {
			out = port("p1")
			q.Out = out.Index
		}
		number := uint32(1000 + i)
		a.fire(shot{number: number, tuple: tuple, flags: trace.SYN})
		if got := ears[tuple.Dst.Addr().String()].heard(t, 300e6)[number]; got != (c.want == "") {
			t.Fatalf("%s: delivered %v", c.to, got)
		}
		var found []trace.FilterVerdict
		bridge.do(func() (err error) { found, err = Verdicts(q, in, out); return err })
		if c.want == "" {
			if len(found) > 0 && found[0].Certain {
				t.Errorf("%s: %+v", c.to, found)
			}
			continue
		}
		hook := map[string]trace.NetfilterHook{"across": trace.Forward, "pre": trace.Prerouting, "local": trace.Input}[c.want]
		want := []trace.FilterVerdict{{Hook: hook, Backend: "nft", Family: "bridge", Table: "f", Chain: c.want, Rule: c.rule, Certain: true}}
		if diff := cmp.Diff(want, found, ignoreCounters); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.to, diff)
		}
	}
}

// TestRoutedOverBridge drops packets that the bridge's host sends on, by it and from it.
func TestRoutedOverBridge(t *testing.T) {
	a, router, b := newSpace(t), newSpace(t), newSpace(t)
	join(a, "a0", router, "r0")
	join(b, "b0", router, "p1")
	router.run("", "ip", "link", "add", "br0", "type", "bridge")
	router.run("", "ip", "link", "set", "p1", "master", "br0")
	router.run("", "ip", "link", "set", "br0", "up")
	router.set("net.ipv4.ip_forward=1")
	a.address("a0", "10.4.0.1/24")
	router.address("r0", "10.4.0.9/24")
	router.address("br0", "10.3.0.9/24")
	b.address("b0", "10.3.0.2/24")
	a.run("", "ip", "route", "add", "default", "via", "10.4.0.9")
	router.run(`table bridge f {
 chain across {
  type filter hook forward priority 0; policy accept;
  tcp dport 80 drop
 }
 chain out {
  type filter hook output priority 0; policy accept;
  tcp dport { 80, 84 } drop
 }
 chain up {
  type filter hook input priority 0; policy accept;
  tcp sport 86 drop
 }
}
`, "nft", "-f", "-")
	device := func(name, kind string) trace.Interface {
		return trace.Interface{Device: trace.Device{Index: router.index(name), Name: name}, Kind: kind}
	}
	in, out := device("r0", "veth"), device("br0", "bridge")
	b.run("", "ip", "route", "add", "default", "via", "10.3.0.9")
	ear, back := b.listen(), a.listen()
	answer := trace.Tuple{Protocol: trace.TCP, Src: netip.MustParseAddrPort("10.3.0.2:86"), Dst: netip.MustParseAddrPort("10.4.0.1:1000")}
	b.fire(shot{number: 3000, tuple: answer, flags: trace.SYN | trace.ACK})
	if back.heard(t, 300e6)[3000] {
		t.Fatal("the answer was delivered")
	}
	port := device("p1", "veth")
	for _, leg := range []trace.Interface{in, out} { // with br_netfilter the frame's route is the bridge at first
		q := trace.Question{Packet: answer, Flags: trace.SYN | trace.ACK, In: port.Index, Out: leg.Index, Filters: []trace.NetfilterHook{trace.Forward, trace.Postrouting}}
		var found []trace.FilterVerdict
		router.do(func() (err error) { found, err = Verdicts(q, port, leg); return err })
		if len(found) != 1 || found[0].Chain != "up" || found[0].Hook != trace.Input {
			t.Errorf("answer by %s: %+v", leg.Name, found)
		}
	}
	for i, to := range []string{"10.3.0.2:80", "10.3.0.2:84", "10.3.0.2:85"} {
		dropped := i < 2
		tuple := trace.Tuple{Protocol: trace.TCP, Src: netip.MustParseAddrPort("10.4.0.1:1000"), Dst: netip.MustParseAddrPort(to)}
		q := trace.Question{Packet: tuple, Flags: trace.SYN, In: in.Index, Out: out.Index, Filters: []trace.NetfilterHook{trace.Forward, trace.Postrouting}}
		number := uint32(2000 + i)
		a.fire(shot{number: number, tuple: tuple, flags: trace.SYN})
		if got := ear.heard(t, 300e6)[number]; got == dropped {
			t.Fatalf("%s: delivered %v", to, got)
		}
		var found []trace.FilterVerdict
		router.do(func() (err error) { found, err = Verdicts(q, in, out); return err })
		if dropped != (len(found) == 1) || dropped && (found[0].Chain != "out" || found[0].Hook != trace.Output || !found[0].Certain) {
			t.Errorf("%s: %+v", to, found)
		}
	}
}
