package diagnose

import (
	"net/netip"
	"syscall"
	"testing"

	"github.com/replypath/replypath/pkg/trace"
)

var (
	meshPod  = be
	outward4 = tuple("10.0.0.5:41000", "203.0.113.9:80")
	inward4  = tuple("198.51.100.7:41822", "10.0.0.5:8080")
)

// goingBy is a case about a connection that was made in the pod, or came into it.
func goingBy(t trace.Tuple, in trace.Device) trace.Case {
	c := request(trace.SymptomPassed, t)
	c.Place, c.Event.Device, c.Event.InIndex = meshPod, in, in.Index
	c.Path.Answered = true
	c.Path.Request = []trace.Hop{{Place: meshPod, In: in, Tuple: t, Arrived: t, Count: 1}}
	return c
}

// with is a sound redirection's state, changed, and what becomes of the case's own packet.
func with(leg trace.RedirectLeg, change func(*trace.Redirection)) trace.HostState {
	r := redirection()
	r.Place = be
	if change != nil {
		change(r)
	}
	r.Asked = []trace.RedirectLeg{leg}
	return trace.HostState{DstLocal: true, Onward: found, Redirect: r}
}

func none(r *trace.Redirection) {
	for i := range r.Families {
		f := &r.Families[i]
		f.UIDs = nil
		for k := range f.Legs {
			f.Legs[k].Taken, f.Legs[k].Sockets, f.Legs[k].Target = false, nil, netip.AddrPort{}
		}
	}
	r.Mesh, r.Proxy = "", trace.ProxyIdentity{}
}

func strays(n int) func(*trace.Redirection) {
	return func(r *trace.Redirection) {
		none(r)
		at := func(role trace.RedirectRole, port uint16, inode uint64) trace.RedirectStray {
			return trace.RedirectStray{Role: role, Socket: trace.Socket{Protocol: trace.TCP, Local: netip.AddrPortFrom(netip.IPv4Unspecified(), port),
				UID: 999, Inode: inode, Process: trace.Process{PID: 9}}}
		}
		r.Strays = []trace.RedirectStray{at(trace.RoleOutbound, 15001, 1), at(trace.RoleInbound, 15006, 2)}[:n]
	}
}

func TestExplainRedirection(t *testing.T) {
	app := []trace.Socket{{Protocol: trace.TCP, Local: netip.MustParseAddrPort("0.0.0.0:8080"), UID: 1000, Inode: 5}}
	proxys := []trace.Socket{{Protocol: trace.TCP, Local: netip.MustParseAddrPort("0.0.0.0:8080"), UID: 5678}}
	past := func(role trace.RedirectRole, p trace.Tuple, s []trace.Socket) trace.RedirectLeg {
		return trace.RedirectLeg{Role: role, Packet: p, UID: 1000, Device: "eth0", Sockets: s}
	}
	excused := past(trace.RoleOutbound, outward4, nil)
	excused.Excused = true
	outward6 := tuple("[fd00::5]:41000", "[2001:db8::9]:80")
	unredirected := func(role trace.RedirectRole) func(*trace.Redirection) {
		return func(r *trace.Redirection) {
			for i := range r.Families {
				f := &r.Families[i]
				l := f.Leg(role)
				l.Taken, l.Sockets, l.Target = false, nil, netip.AddrPort{}
				f.Dangling = []trace.RedirectChain{{Name: "MESH_OUTPUT", Table: "nat", Backend: "iptables-nft", Family: "ip", Ports: []uint16{15001}, Role: role}}
			}
		}
	}
	four := func(r *trace.Redirection) {
		for k := range r.Families[1].Legs {
			r.Families[1].Legs[k].Taken = false
		}
		r.Twins = []trace.RedirectLeg{{Role: trace.RoleOutbound, Taken: true}}
	}
	inward6 := tuple("[2001:db8::7]:41000", "[fd00::5]:80")
	published := func(r *trace.Redirection) {
		none(r)
		to := trace.RedirectLeg{Role: trace.RoleInbound, Packet: tuple("203.0.113.77:49160", "10.0.0.5:80"), Taken: true, Kind: "redirect", Target: netip.MustParseAddrPort("10.0.0.5:8080"), Sockets: app}
		r.Families[0].Legs = append(r.Families[0].Legs, to)
		r.Twins = []trace.RedirectLeg{to}
	}
	down := func(r *trace.Redirection) { r.Loopback.Up = false }
	taken := redirection().Families[0].Legs[0]
	taken.Packet = outward4
	silentProxy := func(r *trace.Redirection) { r.Families[0].Legs[0].Sockets, r.Families[1].Used = nil, false }
	refusedAt := func(p trace.Tuple, to string) trace.Case {
		c := goingBy(p, trace.Device{})
		c.Symptom, c.Event.Hook = trace.SymptomRefused, trace.HookResetSent
		c.Event.Tuple.Dst = netip.MustParseAddrPort(to)
		return c
	}
	looped := goingBy(outward4, trace.Device{})
	looped.Repeats = 40
	loops := func(r *trace.Redirection) {
		l := &r.Families[0].Legs[2]
		l.Taken, l.Kind, l.Target, l.Sockets = true, "redirect", r.Families[0].Legs[0].Target, nil
	}
	unsent := func(src, dst string, errno syscall.Errno) trace.Case {
		c := goingBy(tuple(src, dst), trace.Device{})
		c.Symptom, c.Event.Hook, c.Event.Errno, c.Event.Device = trace.SymptomUnsent, trace.HookAstray, errno, eth0
		return c
	}
	blocked := dropped(tuple("127.0.0.6:40000", "10.0.0.5:8080"), "NETFILTER_DROP", "nft_do_chain")
	blocked.Event.Device = trace.Device{Index: 1, Name: "lo"}
	filtered := with(trace.RedirectLeg{}, nil)
	filtered.Filters = []trace.FilterVerdict{{Hook: trace.Input, Backend: "nft", Family: "inet", Table: "filter", Chain: "input", Handle: 4, Certain: true}}
	noMesh := filtered
	noMesh.Redirect = redirection()
	none(noMesh.Redirect)
	lacking := func(role trace.RedirectRole, answers bool) func(*trace.Redirection) {
		return func(r *trace.Redirection) {
			l := r.Families[0].Leg(role)
			l.Taken, l.Kind, l.Lacks = answers, "tproxy", &trace.MarkRoute{Mark: 1337, Table: 133, Rule: true, Answers: answers}
		}
	}
	unrouted, noWayBack := past(trace.RoleOutbound, outward4, nil), past(trace.RoleInbound, inward4, app)
	unrouted.Lacks, noWayBack.Lacks = &trace.MarkRoute{Mark: 1337}, &trace.MarkRoute{Mark: 1337, Answers: true}
	noWayBack.Taken, noWayBack.Kind = true, "tproxy"
	strayed := goingBy(inward4, trace.Device{})
	strayed.Path.Connection = inward4
	strayed.Path.Request[0].Out = trace.Device{Index: 1, Name: "lo"}
	strayed.Path.Reply = []trace.Hop{{Place: meshPod, Out: eth0, Tuple: inward4.Reverse(), Count: 1}}
	martian := dropped(tuple("198.51.100.7:41822", "127.0.0.1:15006"), "IP_LOCALNET", "ip_rcv_finish_core")
	for _, tt := range []struct {
		name string
		c    trace.Case
		s    trace.HostState
		id   string
		conf trace.Confidence
	}{
		{"a call that is redirected", goingBy(outward4, trace.Device{}), with(taken, nil), "", 0},
		{"a call past missing rules", goingBy(outward4, trace.Device{}), with(past(trace.RoleOutbound, outward4, nil), unredirected(trace.RoleOutbound)), "redirect-missing", trace.Certain},
		{"a call that is let go on purpose", goingBy(outward4, trace.Device{}), with(excused, unredirected(trace.RoleOutbound)), "", 0},
		{"a call of the proxy's", goingBy(outward4, trace.Device{}), with(func() trace.RedirectLeg {
			l := past(trace.RoleOutbound, outward4, nil)
			l.UID = 5678
			return l
		}(), unredirected(trace.RoleOutbound)), "", 0},
		{"an excluded port, where all else is redirected", goingBy(outward4, trace.Device{}), with(past(trace.RoleOutbound, outward4, nil), nil), "", 0},
		{"no rules, and a proxy listens", goingBy(inward4, eth0), with(past(trace.RoleInbound, inward4, app), strays(2)), "redirect-missing", trace.Likely},
		{"no rules, and one port of a proxy's", goingBy(inward4, eth0), with(past(trace.RoleInbound, inward4, app), strays(1)), "", 0},
		{"no rules, and the DNS of a proxy that applications call themselves", goingBy(inward4, eth0), with(past(trace.RoleInbound, inward4, app), func(r *trace.Redirection) {
			none(r)
			r.Strays = []trace.RedirectStray{{Role: trace.RoleDNS, Socket: trace.Socket{Protocol: trace.UDP, Local: netip.MustParseAddrPort("127.0.0.1:15053"), UID: 5678, Process: trace.Process{PID: 9, Comm: "kuma-dp"}}}}
		}), "", 0},
		{"no rules at all", goingBy(inward4, eth0), with(past(trace.RoleInbound, inward4, app), none), "", 0},
		{"a call to the proxy itself", goingBy(inward4, eth0), with(past(trace.RoleInbound, inward4, proxys), unredirected(trace.RoleInbound)), "", 0},
		{"IPv6 past the proxy", goingBy(outward6, trace.Device{}), with(past(trace.RoleOutbound, outward6, nil), four), "redirect-bypassed-ipv6", trace.Certain},
		{"IPv6 to a port that IPv4 has redirected", goingBy(inward6, eth0), with(past(trace.RoleInbound, inward6, app), published), "", 0},
		{"IPv6 to a port of those that a mesh has redirected", goingBy(inward6, eth0), with(past(trace.RoleInbound, inward6, app), func(r *trace.Redirection) {
			published(r)
			r.Mesh = "Istio"
		}), "redirect-bypassed-ipv6", trace.Certain},
		{"IPv4, where IPv6 would go past", goingBy(outward4, trace.Device{}), with(taken, four), "", 0},
		{"nobody listens where it is redirected to", refusedAt(outward4, "127.0.0.1:15001"), with(func() trace.RedirectLeg {
			l := taken
			l.Sockets = nil
			return l
		}(), silentProxy), "redirect-target-not-listening", trace.Certain},
		{"somebody listens there by now", refusedAt(outward4, "127.0.0.1:15001"), with(taken, nil), "redirect-target-not-listening", trace.Likely},
		{"nobody listens, and nothing is redirected", refusedAt(tuple("10.0.0.5:41000", "10.0.0.5:81"), "10.0.0.5:81"), with(past(trace.RoleOutbound, outward4, nil), nil), "port-not-listening", trace.Certain},
		{"a proxy that calls itself", looped, with(taken, loops), "redirect-loop", trace.Certain},
		{"a proxy that could call itself", goingBy(outward4, trace.Device{}), with(taken, loops), "", 0},
		{"lo is down", goingBy(outward4, trace.Device{}), with(taken, down), "loopback-down", trace.Certain},
		{"lo is down, and who does not need it", goingBy(outward4, trace.Device{}), with(past(trace.RoleOutbound, outward4, nil), func(r *trace.Redirection) { none(r); down(r) }), "", 0},
		{"lo is down, and a call by it", func() trace.Case {
			c := goingBy(outward4, trace.Device{})
			c.Path.Answered, c.Path.Request[0].Out = false, trace.Device{Index: 1, Name: "lo"}
			return c
		}(), with(past(trace.RoleOutbound, outward4, nil), func(r *trace.Redirection) { none(r); down(r) }), "loopback-down", trace.Certain},
		{"a call to 127.0.0.1 while lo is down", unsent("0.0.0.0:0", "127.0.0.1:8080", syscall.EAGAIN), with(trace.RedirectLeg{}, func(r *trace.Redirection) { none(r); down(r) }), "loopback-down", trace.Certain},
		{"127.0.0.6 calls another host", unsent("127.0.0.6:0", "203.0.113.9:80", 0), with(trace.RedirectLeg{}, nil), "loopback-source-leaked", trace.Certain},
		{"127.0.0.1 calls another host, and may", unsent("127.0.0.1:0", "203.0.113.9:80", 0), with(trace.RedirectLeg{}, func(r *trace.Redirection) { r.Localnet = []string{"lo", "eth0"} }), "", 0},
		{"nobody listens where TPROXY hands it to", goingBy(inward4, eth0), with(func() trace.RedirectLeg {
			l := past(trace.RoleInbound, inward4, nil)
			l.Taken, l.Kind, l.Target = true, "tproxy", netip.MustParseAddrPort("10.0.0.5:15006")
			return l
		}(), nil), "redirect-target-not-listening", trace.Certain},
		{"marked for the proxy, and not routed by it", goingBy(outward4, trace.Device{}), with(unrouted, lacking(trace.RoleOutbound, false)), "redirect-missing", trace.Certain},
		{"TPROXY without a way back, and a client that was served", goingBy(inward4, eth0), with(noWayBack, lacking(trace.RoleInbound, true)), "", 0},
		{"TPROXY without a way back", strayed, with(noWayBack, lacking(trace.RoleInbound, true)), "redirect-missing", trace.Certain},
		{"an answer that left, and a way back", strayed, with(taken, nil), "", 0},
		{"a filter on lo", blocked, filtered, "loopback-blocked", trace.Certain},
		{"a filter on lo, without a mesh", blocked, noMesh, "netfilter-drop", trace.Certain},
		{"from outside to 127.0.0.1", martian, trace.HostState{DstLocal: true, Onward: found}, "route-localnet-disabled", trace.Certain},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f, _ := Explain(&tt.c, &tt.s)
			if f.ID != tt.id {
				t.Fatalf("finding %q, want %q (%s)", f.ID, tt.id, f.Cause)
			}
			if tt.id == "" {
				return
			}
			if f.Confidence != tt.conf || f.Direction != trace.Request {
				t.Errorf("%s %s, want %s %s", f.Direction, f.Confidence, trace.Request, tt.conf)
			}
			checkComplete(t, &f)
		})
	}
}
