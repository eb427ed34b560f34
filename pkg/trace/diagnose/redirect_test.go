package diagnose

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/replypath/replypath/pkg/trace"
)

// redirection is a sound one, as internal/redirect finds it: Kuma's, IPv4 and IPv6.
func redirection() *trace.Redirection {
	r := &trace.Redirection{Place: trace.Place{Netns: 7, Name: "pod"}, ReadAt: time.Unix(1000, 0), Mesh: "Kuma",
		Loopback: trace.Interface{Device: trace.Device{Index: 1, Name: "lo"}, Up: true},
		Proxy:    trace.ProxyIdentity{Known: true, UID: 5678, GID: 5678, HasGID: true}}
	for _, six := range []bool{false, true} {
		own, far, loop := netip.MustParseAddr("10.0.0.5"), netip.MustParseAddr("203.0.113.77"), netip.MustParseAddr("127.0.0.1")
		pass := netip.MustParseAddr("127.0.0.6")
		if six {
			own, far, loop, pass = netip.MustParseAddr("fd00::5"), netip.MustParseAddr("2001:db8::77"), netip.IPv6Loopback(), netip.MustParseAddr("::6")
		}
		leg := func(role trace.RedirectRole, from, to netip.Addr, device string, target uint16, at netip.Addr) trace.RedirectLeg {
			l := trace.RedirectLeg{Role: role, Device: device, Backend: "iptables-nft", Packet: trace.Tuple{Protocol: trace.TCP, Src: netip.AddrPortFrom(from, 40000), Dst: netip.AddrPortFrom(to, 80)}}
			if target != 0 {
				l.Taken, l.Kind, l.Target = true, "redirect", netip.AddrPortFrom(at, target)
				l.Sockets = []trace.Socket{{Protocol: trace.TCP, Local: l.Target, UID: 5678}}
			}
			return l
		}
		r.Families = append(r.Families, trace.RedirectFamily{Six: six, Used: true, Address: own, UIDs: []uint32{5678}, Distinguished: true, Legs: []trace.RedirectLeg{
			leg(trace.RoleOutbound, own, far, "eth0", 15001, loop), leg(trace.RoleInbound, far, own, "eth0", 15006, own),
			leg(trace.RoleProxy, own, far, "eth0", 0, loop), leg(trace.RolePassthrough, pass, own, "lo", 0, loop), leg(trace.RoleSelf, loop, pass, "lo", 15006, loop),
		}})
	}
	return r
}

func TestRedirection(t *testing.T) {
	both := func(r *trace.Redirection, change func(*trace.RedirectFamily)) {
		for i := range r.Families {
			change(&r.Families[i])
		}
	}
	let := func(l *trace.RedirectLeg) { l.Taken, l.Sockets, l.Target = false, nil, netip.AddrPort{} }
	for _, tt := range []struct {
		name   string
		change func(*trace.Redirection)
		want   string // ids; "" for none
		conf   trace.Confidence
	}{
		{"sound", func(*trace.Redirection) {}, "", 0},
		{"lo is down", func(r *trace.Redirection) { r.Loopback.Up = false }, "loopback-down", trace.Certain},
		{"rules could not be read", func(r *trace.Redirection) {
			both(r, func(f *trace.RedirectFamily) { f.Unread, f.Legs = true, nil })
		}, "", 0},
		{"nothing is redirected, and half is unread", func(r *trace.Redirection) {
			r.Families[1].Unread = true
			for i := range r.Families[0].Legs {
				let(&r.Families[0].Legs[i])
			}
		}, "redirect-missing", trace.Likely},
		{"IPv6 is not redirected", func(r *trace.Redirection) {
			for i := range r.Families[1].Legs {
				let(&r.Families[1].Legs[i])
			}
		}, "redirect-bypassed-ipv6", trace.Certain},
		{"IPv6 is dropped", func(r *trace.Redirection) {
			for i := range r.Families[1].Legs {
				let(&r.Families[1].Legs[i])
				r.Families[1].Legs[i].Drop = &trace.FilterVerdict{Policy: true}
			}
			r.Mesh = ""
		}, "", 0},
		{"no address of IPv6", func(r *trace.Redirection) {
			r.Families[1].Used = false
			for i := range r.Families[1].Legs {
				let(&r.Families[1].Legs[i])
			}
		}, "", 0},
		{"the proxy is another user", func(r *trace.Redirection) {
			both(r, func(f *trace.RedirectFamily) {
				f.Legs[2].Taken, f.Legs[2].Target = true, f.Legs[0].Target
				let(&f.Legs[4])
			})
			r.Proxy.UID = 1000
		}, "redirect-loop", trace.Certain},
		{"the proxy is not known, and may be told by a mark", func(r *trace.Redirection) {
			both(r, func(f *trace.RedirectFamily) {
				f.Legs[2].Taken, f.Legs[2].Target = true, f.Legs[0].Target
				f.Opaque = true
			})
			r.Proxy = trace.ProxyIdentity{}
		}, "", 0},
		{"nobody listens", func(r *trace.Redirection) {
			both(r, func(f *trace.RedirectFamily) { f.Legs[1].Sockets = nil })
		}, "redirect-target-not-listening", trace.Certain},
		{"nobody listens yet", func(r *trace.Redirection) {
			both(r, func(f *trace.RedirectFamily) { f.Legs[1].Sockets = nil })
			r.Before = true
		}, "", 0},
		{"listeners could not be read", func(r *trace.Redirection) {
			both(r, func(f *trace.RedirectFamily) { f.Legs[1].Sockets = nil })
			r.Unread = []string{"listeners: no time left"}
		}, "", 0},
		{"a filter drops the passthrough", func(r *trace.Redirection) {
			both(r, func(f *trace.RedirectFamily) {
				f.Legs[3].Drop, f.Legs[3].OnLoopback = &trace.FilterVerdict{Hook: trace.Input, Backend: "nft", Family: "inet", Table: "t", Chain: "in", Handle: 4, Certain: true}, true
			})
		}, "loopback-blocked", trace.Certain},
		{"the probe got no answer", func(r *trace.Redirection) {
			r.Families[0].Legs[4].Probe = trace.RedirectProbe{Done: true, TimedOut: true, Failure: "connection timed out", Tries: 3}
		}, "loopback-blocked", trace.Likely},
		{"the probe was refused", func(r *trace.Redirection) {
			r.Families[0].Legs[4].Probe = trace.RedirectProbe{Done: true, Failure: "connection refused", Tries: 3}
		}, "redirect-missing", trace.Likely},
		{"a doubt about what is not brought back", func(r *trace.Redirection) {
			both(r, func(f *trace.RedirectFamily) { let(&f.Legs[4]); f.Legs[4].Doubts = []string{"-m set …"} })
		}, "", 0},
		{"inbound is let go on purpose", func(r *trace.Redirection) {
			both(r, func(f *trace.RedirectFamily) {
				let(&f.Legs[1])
				f.Legs[1].Excused = true
				f.Legs = f.Legs[:4]
			})
			r.Strays = []trace.RedirectStray{{Role: trace.RoleInbound, Socket: trace.Socket{Protocol: trace.TCP, Local: netip.MustParseAddrPort("0.0.0.0:15006")}}}
		}, "", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := redirection()
			tt.change(r)
			found := Redirection(r)
			var ids []string
			for _, f := range found {
				ids = append(ids, f.ID)
				if f.Summary == "" || f.Cause == "" || len(f.Fix) == 0 || len(f.Verify) == 0 || len(f.Evidence) == 0 || f.Severity == 0 || f.Direction != trace.Request || !f.Path.Connection.IsValid() {
					t.Errorf("incomplete: %+v", f)
				}
			}
			if got := strings.Join(ids, " "); got != tt.want {
				t.Fatalf("found %q, want %q: %+v", got, tt.want, found)
			}
			if tt.want != "" && found[0].Confidence != tt.conf {
				t.Errorf("confidence %s, want %s", found[0].Confidence, tt.conf)
			}
		})
	}
}

// What others chose may not get out of the quotes of a command.
func TestRedirectionCommandsAreSafe(t *testing.T) {
	r := redirection()
	r.Place.Name = "a b;rm -rf /"
	r.Families[0].Legs[3].Drop = &trace.FilterVerdict{Hook: trace.Input, Backend: "nft", Family: "inet", Table: "t;reboot", Chain: "in", Handle: 4}
	r.Families[0].Legs[3].OnLoopback = true
	for _, f := range Redirection(r) {
		for _, command := range append(f.Fix, f.Verify...) {
			for _, bad := range []string{" a b;rm", " t;reboot"} {
				if strings.Contains(command, bad) {
					t.Errorf("%s", command)
				}
			}
		}
	}
}

func TestMeshName(t *testing.T) {
	for _, tt := range []struct {
		name trace.MeshName
		want int
	}{
		{trace.MeshName{Mesh: "default", Name: "web"}, 0},
		{trace.MeshName{Mesh: "default", Name: "web-1", Namespace: "shop", Service: "web"}, 0},
		{trace.MeshName{Mesh: "aa.a"}, 1},
		{trace.MeshName{Mesh: "aa.a", Name: "dp.1"}, 1},
		{trace.MeshName{Mesh: "aa", Name: "dp.1"}, 1},
		{trace.MeshName{Mesh: "aa", Name: "web", Namespace: "a.b"}, 1},
		{trace.MeshName{Service: "a.b"}, 1},
		{trace.MeshName{Mesh: "..", Name: "."}, 1},
	} {
		found := MeshName(&tt.name, trace.Place{}, time.Unix(1, 0))
		if len(found) != tt.want {
			t.Errorf("%+v: %d findings", tt.name, len(found))
		}
		for _, f := range found {
			if f.ID != "mesh-name-ambiguous" || f.Severity == 0 || len(f.Fix) == 0 || len(f.Verify) == 0 || len(f.Evidence) < 2 || f.Evidence[0].Time.IsZero() {
				t.Errorf("%+v: incomplete: %+v", tt.name, f)
			}
		}
	}
}
