package netstate

import (
	"context"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/replypath/replypath/pkg/trace"
)

// plan is one address plan for a test network: a host with two devices, each
// with a neighbour behind it that routes.
type plan struct {
	is6                 bool
	own0, own1          string // the host's addresses with prefix lengths
	gw0, gw1            string // neighbours on eth0 and eth1
	link0               string // network of eth0
	client, vip         string
	clients, vips, wide string // networks that hold them
	any                 string
	single              string // the client as a prefix
	otherClient         string
}

var plans = map[string]plan{
	"ipv4": {
		own0: "10.0.1.1/24", own1: "10.0.2.1/24", gw0: "10.0.1.2", gw1: "10.0.2.2", link0: "10.0.1.0/24",
		client: "198.51.100.7", vip: "203.0.113.80", clients: "198.51.100.0/24", vips: "203.0.113.0/24",
		wide: "198.0.0.0/8", any: "0.0.0.0/0", single: "198.51.100.7/32", otherClient: "192.0.2.9",
	},
	"ipv6": {
		is6: true, own0: "fd00:1::1/64", own1: "fd00:2::1/64", gw0: "fd00:1::2", gw1: "fd00:2::2", link0: "fd00:1::/64",
		client: "2001:db8:7::7", vip: "2001:db8:80::80", clients: "2001:db8:7::/48", vips: "2001:db8:80::/48",
		wide: "2001:db8::/32", any: "::/0", single: "2001:db8:7::7/128", otherClient: "2001:db8:9::9",
	},
}

// newHost makes the network of a plan and returns the namespaces of the host
// and of its neighbours.
func newHost(t testing.TB, p plan) (host, peer *space) {
	host, peer = newSpace(t), newSpace(t)
	host.connect("eth0", peer, "peer0")
	host.connect("eth1", peer, "peer1")
	for _, device := range []string{"all", "default", "eth0", "eth1"} {
		host.sysctl("net/ipv4/conf/"+device+"/rp_filter", "0")
	}
	host.address("eth0", p.own0)
	host.address("eth1", p.own1)
	return host, peer
}

// ownsVIP makes the host the owner of the VIP.
func ownsVIP(h *space, p plan) { h.address("lo", p.vip+p.single[len(p.client):]) }

// all runs several steps.
func all(steps ...func(h *space, p plan)) func(h *space, p plan) {
	return func(h *space, p plan) {
		for _, step := range steps {
			step(h, p)
		}
	}
}

func reject(kind int, prefix func(p plan) string) func(h *space, p plan) {
	return func(h *space, p plan) { h.route(kind, prefix(p), "", "") }
}

func defaultRoute(h *space, p plan) { h.route(0, p.any, p.gw0, "eth0") }

func forward(h *space, p plan) {
	if p.is6 {
		h.sysctl("net/ipv6/conf/all/forwarding", "1")
	} else {
		h.sysctl("net/ipv4/ip_forward", "1")
	}
}

func inTable(table int) func(*netlink.Route) { return func(r *netlink.Route) { r.Table = table } }

// lookupCase asks about the packet client -> VIP that comes in by in ("": made here).
type lookupCase struct {
	name         string
	setup        func(h *space, p plan)
	in           string
	mark         uint32
	reply        bool                // ask about VIP -> client instead
	onward, back func(p plan) string // as describe writes it; nil: not looked at
	dstLocal     bool
	srcLocal     bool
}

func text(s string) func(plan) string { return func(plan) string { return s } }

var localVIP = func(p plan) string { return "local " + p.vip + p.single[len(p.client):] + " dev lo table local" }

func viaDefault(p plan) string { return "unicast " + p.any + " via " + p.gw0 + " dev eth0 table main" }

func clientsOf(p plan) string { return p.clients }

var lookupCases = []lookupCase{
	{
		name: "healthy DSR backend", setup: all(ownsVIP, defaultRoute), in: "eth1",
		onward: localVIP, back: viaDefault, dstLocal: true,
	},
	{
		name: "no route back", setup: ownsVIP, in: "eth1",
		onward: localVIP, back: text("ENETUNREACH"), dstLocal: true,
	},
	{
		name: "blackhole back", in: "eth1",
		setup:  all(ownsVIP, defaultRoute, reject(unix.RTN_BLACKHOLE, clientsOf)),
		onward: localVIP, dstLocal: true,
		back: func(p plan) string { return "EINVAL blackhole " + p.clients + " table main" },
	},
	{
		name: "unreachable back", in: "eth1",
		setup:  all(ownsVIP, defaultRoute, reject(unix.RTN_UNREACHABLE, clientsOf)),
		onward: localVIP, dstLocal: true,
		back: func(p plan) string { return "EHOSTUNREACH unreachable " + p.clients + " table main" },
	},
	{
		name: "prohibit back, beside a wider blackhole", in: "eth1",
		setup: all(ownsVIP, defaultRoute, reject(unix.RTN_BLACKHOLE, func(p plan) string { return p.wide }),
			reject(unix.RTN_PROHIBIT, func(p plan) string { return p.single })),
		onward: localVIP, dstLocal: true,
		back: func(p plan) string { return "EACCES prohibit " + p.single + " table main" },
	},
	{
		name: "throw without another table", in: "eth1",
		setup:  all(ownsVIP, defaultRoute, reject(unix.RTN_THROW, clientsOf)),
		onward: localVIP, dstLocal: true,
		back: func(p plan) string { return "ENETUNREACH throw " + p.clients + " table main" },
	},
	{
		name: "throw into the main table", in: "eth1",
		setup: all(ownsVIP, defaultRoute, func(h *space, p plan) {
			h.route(unix.RTN_THROW, p.clients, "", "", inTable(100))
			h.rule(p.is6, func(r *netlink.Rule) { r.Table, r.Priority = 100, 100 })
		}),
		onward: localVIP, dstLocal: true, back: viaDefault,
	},
	{
		name: "a rule rejects by source", in: "eth1",
		setup: all(ownsVIP, defaultRoute, func(h *space, p plan) {
			h.rule(p.is6, func(r *netlink.Rule) {
				r.Src, r.Type, r.Priority = network(h.t, p.vips), unix.RTN_PROHIBIT, 1000
			})
		}),
		onward: localVIP, dstLocal: true,
		back: func(p plan) string { return `EACCES prohibit rule "1000: from ` + p.vips + ` prohibit"` },
	},
	{
		name: "a rule blackholes by destination", in: "eth1",
		setup: all(ownsVIP, defaultRoute, func(h *space, p plan) {
			h.rule(p.is6, func(r *netlink.Rule) {
				r.Dst, r.Type, r.Priority = network(h.t, p.single), unix.RTN_BLACKHOLE, 1000
			})
		}),
		onward: localVIP, dstLocal: true,
		back: func(p plan) string { return `EINVAL blackhole rule "1000: from all to ` + p.client + ` blackhole"` },
	},
	{
		name: "a rule makes unreachable", in: "eth1",
		setup: all(ownsVIP, defaultRoute, func(h *space, p plan) {
			h.rule(p.is6, func(r *netlink.Rule) { r.Type, r.Priority = unix.RTN_UNREACHABLE, 1000 })
		}),
		onward: localVIP, dstLocal: true,
		back: text(`ENETUNREACH unreachable rule "1000: from all unreachable"`),
	},
	{
		name: "policy table by source", in: "eth1",
		setup: all(ownsVIP, defaultRoute, func(h *space, p plan) {
			h.route(0, p.any, p.gw1, "eth1", inTable(100))
			h.rule(p.is6, func(r *netlink.Rule) { r.Src, r.Table, r.Priority = network(h.t, p.vips), 100, 1000 })
		}),
		onward: localVIP, dstLocal: true,
		back: func(p plan) string { return "unicast " + p.any + " via " + p.gw1 + " dev eth1 table 100" },
	},
	{
		name: "policy table by source without a default route", in: "eth1",
		setup: all(ownsVIP, func(h *space, p plan) {
			h.route(unix.RTN_BLACKHOLE, p.any, "", "", inTable(100))
			h.rule(p.is6, func(r *netlink.Rule) { r.Src, r.Table, r.Priority = network(h.t, p.vips), 100, 1000 })
		}),
		onward: localVIP, dstLocal: true,
		back: func(p plan) string { return "EINVAL blackhole " + p.any + " table 100" },
	},
	{
		name: "the answer has no mark", in: "eth1", mark: 7,
		setup: all(ownsVIP, defaultRoute, func(h *space, p plan) {
			h.route(0, p.any, p.gw1, "eth1", inTable(100))
			h.rule(p.is6, func(r *netlink.Rule) { r.Mark, r.Table, r.Priority = 7, 100, 1000 })
		}),
		onward: localVIP, dstLocal: true, back: viaDefault,
	},
	{
		name: "the answer inherits the mark", in: "eth1", mark: 7,
		setup: all(ownsVIP, defaultRoute, func(h *space, p plan) {
			h.sysctl("net/ipv4/tcp_fwmark_accept", "1")
			h.route(0, p.any, p.gw1, "eth1", inTable(100))
			h.rule(p.is6, func(r *netlink.Rule) { r.Mark, r.Table, r.Priority = 7, 100, 1000 })
		}),
		onward: localVIP, dstLocal: true,
		back: func(p plan) string { return "unicast " + p.any + " via " + p.gw1 + " dev eth1 table 100" },
	},
	{
		name: "a local prefix is local", in: "eth1",
		setup: all(defaultRoute, func(h *space, p plan) {
			h.route(unix.RTN_LOCAL, p.vips, "", "lo", inTable(unix.RT_TABLE_LOCAL), func(r *netlink.Route) { r.Scope = netlink.SCOPE_HOST })
		}),
		onward: func(p plan) string { return "local " + p.vips + " dev lo table local" }, back: viaDefault, dstLocal: true,
	},
	{
		name: "not local, not forwarding", in: "eth1", setup: defaultRoute,
		onward: viaDefault, back: viaDefault,
	},
	{
		name: "not local, forwarding", in: "eth1", setup: all(defaultRoute, forward),
		onward: viaDefault, back: viaDefault,
	},
	{
		name: "not local, no route", in: "eth1", setup: forward,
		onward: text("ENETUNREACH"), back: text("ENETUNREACH"),
	},
	{
		name: "a router rejects, though it does not forward", in: "eth1",
		setup:  all(defaultRoute, reject(unix.RTN_UNREACHABLE, func(p plan) string { return p.vips })),
		onward: func(p plan) string { return "EHOSTUNREACH unreachable " + p.vips + " table main" }, back: viaDefault,
	},
	{
		name: "a router rejects the way back", in: "eth1",
		setup:  all(defaultRoute, forward, reject(unix.RTN_PROHIBIT, clientsOf)),
		onward: viaDefault,
		back:   func(p plan) string { return "EACCES prohibit " + p.clients + " table main" },
	},
	{
		name: "strict reverse path behind another device", in: "eth1",
		setup: all(defaultRoute, forward, func(h *space, p plan) { h.sysctl("net/ipv4/conf/eth1/rp_filter", "1") }),
		// the kernel's input lookup fails here in IPv4, the routes do not
		onward: viaDefault, back: viaDefault,
	},
	{
		name: "policy table by input device, not forwarding", in: "eth1",
		setup: all(defaultRoute, func(h *space, p plan) {
			h.route(0, p.any, p.gw1, "eth1", inTable(200))
			h.rule(p.is6, func(r *netlink.Rule) { r.IifName, r.Table, r.Priority = "eth1", 200, 1000 })
		}),
		onward: func(p plan) string { return "unicast " + p.any + " via " + p.gw1 + " dev eth1 table 200" },
		// the answer comes in by eth1 too
		back: func(p plan) string { return "unicast " + p.any + " via " + p.gw1 + " dev eth1 table 200" },
	},
	{
		name: "policy table by mark, forwarding", in: "eth1", mark: 0x10,
		setup: all(defaultRoute, forward, func(h *space, p plan) {
			h.route(0, p.any, p.gw1, "eth1", inTable(70000))
			h.rule(p.is6, func(r *netlink.Rule) {
				mask := uint32(0xff)
				r.Mark, r.Mask, r.Table, r.Priority = 0x10, &mask, 70000, 1000
			})
		}),
		onward: func(p plan) string { return "unicast " + p.any + " via " + p.gw1 + " dev eth1 table 70000" }, back: viaDefault,
	},
	{
		name: "policy table by port", in: "eth1",
		setup: all(ownsVIP, defaultRoute, func(h *space, p plan) {
			h.route(0, p.any, p.gw1, "eth1", inTable(100))
			h.rule(p.is6, func(r *netlink.Rule) {
				r.IPProto, r.Sport, r.Table, r.Priority = unix.IPPROTO_TCP, netlink.NewRulePortRange(80, 80), 100, 1000
			})
		}),
		onward: localVIP, dstLocal: true,
		back: func(p plan) string { return "unicast " + p.any + " via " + p.gw1 + " dev eth1 table 100" },
	},
	{
		name: "an inverted rule, suppressed default", in: "eth1", // what wg-quick does
		setup: all(ownsVIP, defaultRoute, func(h *space, p plan) {
			h.route(0, p.any, p.gw1, "eth1", inTable(51820))
			h.rule(p.is6, func(r *netlink.Rule) {
				r.Mark, r.Invert, r.Table, r.Priority = 51820, true, 51820, 32765
			})
			h.rule(p.is6, func(r *netlink.Rule) { r.Table, r.SuppressPrefixlen, r.Priority = unix.RT_TABLE_MAIN, 0, 32764 })
		}),
		onward: localVIP, dstLocal: true,
		back: func(p plan) string { return "unicast " + p.any + " via " + p.gw1 + " dev eth1 table 51820" },
	},
	{
		name: "on the link", in: "eth1", reply: true,
		setup:  all(forward, func(h *space, p plan) { h.route(0, p.clients, "", "eth0") }),
		onward: func(p plan) string { return "unicast " + p.clients + " dev eth0 table main" }, back: text("ENETUNREACH"),
	},
	{
		name: "gateway that is not on the link", in: "eth1", reply: true,
		setup: all(forward, func(h *space, p plan) {
			h.route(0, p.clients, p.otherClient, "eth0", func(r *netlink.Route) { r.Flags = unix.RTNH_F_ONLINK })
		}),
		onward: func(p plan) string { return "unicast " + p.clients + " via " + p.otherClient + " dev eth0 table main" },
		back:   text("ENETUNREACH"),
	},
	{
		name: "made here", reply: true,
		setup:  all(ownsVIP, defaultRoute),
		onward: viaDefault, back: localVIP, srcLocal: true,
	},
	{
		name: "made here, without a route", reply: true, setup: ownsVIP,
		onward: text("ENETUNREACH"), srcLocal: true, back: localVIP,
	},
	{
		name: "made here, source is not local", reply: true, setup: defaultRoute,
		onward: viaDefault, back: viaDefault,
	},
	{
		name: "longer prefix and lower metric win", reply: true,
		setup: all(ownsVIP, defaultRoute, func(h *space, p plan) {
			h.route(0, p.clients, p.gw1, "eth1", func(r *netlink.Route) { r.Priority = 50 })
			h.route(unix.RTN_BLACKHOLE, p.clients, "", "", func(r *netlink.Route) { r.Priority = 60 })
		}),
		onward:   func(p plan) string { return "unicast " + p.clients + " via " + p.gw1 + " dev eth1 table main" },
		srcLocal: true,
	},
}

func TestReadLookups(t *testing.T) {
	needRoot(t)
	reader := newTestReader(t, nil)
	for family, p := range plans {
		for _, c := range lookupCases {
			t.Run(family+"/"+c.name, func(t *testing.T) {
				h, _ := newHost(t, p)
				if c.setup != nil {
					c.setup(h, p)
				}
				q := trace.Question{Place: h.place(), Packet: packet(p.client, p.vip), Mark: c.mark}
				if c.reply {
					q.Packet = packet(p.vip, p.client)
				}
				if c.in != "" {
					q.In = h.index(c.in)
				}
				state, err := reader.Read(context.Background(), q)
				must(t, err)
				if len(state.Unread) > 0 {
					t.Errorf("Unread = %q", state.Unread)
				}
				if got := describe(state.Onward); c.onward != nil && got != c.onward(p) {
					t.Errorf("Onward = %s\n    want %s", got, c.onward(p))
				}
				if got := describe(state.Back); c.back != nil && got != c.back(p) {
					t.Errorf("Back = %s\n  want %s", got, c.back(p))
				}
				if state.DstLocal != c.dstLocal || state.SrcLocal != c.srcLocal {
					t.Errorf("DstLocal, SrcLocal = %v, %v, want %v, %v", state.DstLocal, state.SrcLocal, c.dstLocal, c.srcLocal)
				}
			})
		}
	}
}
