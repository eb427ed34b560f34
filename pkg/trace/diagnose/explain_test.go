package diagnose

import (
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/replypath/replypath/pkg/trace"
)

var (
	now   = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	eth0  = trace.Device{Index: 2, Name: "eth0"}
	vx0   = trace.Device{Index: 3, Name: "vx0"}
	be    = trace.Place{Netns: 7, Name: "be"}
	vip4  = tuple("198.51.100.7:41822", "203.0.113.80:80")
	vip6  = tuple("[2001:db8:1::7]:41822", "[2001:db8:80::50]:80")
	addr  = netip.MustParseAddr
	found = trace.Lookup{Done: true, Type: "unicast", Prefix: netip.MustParsePrefix("10.2.0.0/24"), Table: 254, Device: eth0}
)

func tuple(src, dst string) trace.Tuple {
	return trace.Tuple{Protocol: trace.TCP, Src: netip.MustParseAddrPort(src), Dst: netip.MustParseAddrPort(dst)}
}

func noRoute() trace.Lookup { return trace.Lookup{Done: true, Errno: syscall.ENETUNREACH} }

func byDefault() trace.Lookup {
	l := found
	l.Prefix, l.Gateway = netip.MustParsePrefix("0.0.0.0/0"), addr("10.2.0.1")
	return l
}

func rejected(kind, prefix string) trace.Lookup {
	return trace.Lookup{Done: true, Errno: syscall.EINVAL, Type: kind, Prefix: netip.MustParsePrefix(prefix), Table: 254}
}

func thrown() trace.Lookup {
	l := rejected("throw", "198.51.100.0/24")
	l.Errno = syscall.ENETUNREACH
	return l
}

// request is a case about a SYN that came into be by eth0.
func request(s trace.Symptom, t trace.Tuple) trace.Case {
	ev := trace.Event{Time: now, Netns: be.Netns, Device: eth0, Tuple: t, Flags: trace.SYN, InIndex: eth0.Index, Hook: trace.HookReceive}
	arrival := ev
	c := trace.Case{
		Symptom: s, Direction: trace.Request, Place: be, Event: ev, Arrival: arrival,
		Path: trace.Path{Protocol: trace.TCP, Client: t.Src, Server: t.Dst, Connection: t},
	}
	switch s {
	case trace.SymptomSilence:
		c.Direction = trace.Reply
	case trace.SymptomDrop:
		c.Event.Hook = trace.HookDrop
	case trace.SymptomRefused:
		c.Event.Hook = trace.HookResetSent
	}
	return c
}

// udp4 is a question by UDP.
var udp4 = func() trace.Tuple {
	t := tuple("198.51.100.7:41822", "203.0.113.80:53")
	t.Protocol = trace.UDP
	return t
}()

// tooBig is a case about an ICMP error that says that a packet is too big.
func tooBig(hook trace.Hook) trace.Case {
	c := request(trace.SymptomTooBig, vip4)
	c.Event.Hook, c.Event.Inner, c.Event.ICMPType, c.Event.ICMPCode, c.Event.Reason = hook, true, 3, 4, "NETFILTER_DROP"
	return c
}

// fragment is a case about a later fragment of a datagram that was dropped.
func fragment(reason string) trace.Case {
	c := dropped(udp4, reason, "x")
	c.Event.Fragment = true
	return c
}

func dropped(t trace.Tuple, reason, symbol string) trace.Case {
	c := request(trace.SymptomDrop, t)
	c.Event.Reason, c.Event.Symbol = reason, symbol
	return c
}

// replyDropped is a case about a SYN-ACK that came into be, a router, by eth0.
func replyDropped(t trace.Tuple, reason, symbol string) trace.Case {
	c := dropped(t, reason, symbol)
	c.Direction = trace.Reply
	c.Event.Tuple, c.Event.Flags = t.Reverse(), trace.SYN|trace.ACK
	c.Arrival.Tuple, c.Arrival.Flags = t.Reverse(), trace.SYN|trace.ACK
	return c
}

// marked is a case about a SYN-ACK that be made and netfilter dropped at its hook OUTPUT.
func marked(mark uint32) trace.Case {
	c := replyDropped(vip4, "", "nf_hook_slow")
	c.Event.InIndex, c.Event.Device, c.Event.HasRoute, c.Event.Mark = 0, trace.Device{}, true, mark
	return c
}

// rerouted is a case about a SYN that be made for another address, and NAT at its hook OUTPUT gave this one.
func rerouted() trace.Case {
	c := marked(0)
	c.Direction, c.Event.Tuple, c.Event.Flags = trace.Request, vip4, trace.SYN
	original := vip4
	original.Dst = netip.MustParseAddrPort("10.96.0.1:80")
	c.Event.Conntrack = trace.Conntrack{Original: original, Reply: vip4.Reverse(), Info: 2}
	return c
}

// only is a route for one address.
func only(prefix string) trace.Lookup {
	l := found
	l.Prefix = netip.MustParsePrefix(prefix)
	return l
}

// flooded is a case about a SYN to another MAC.
func flooded() trace.Case {
	c := dropped(vip4, "", "nf_hook_slow")
	c.Event.OtherHost = true
	return c
}

func listening() []trace.Listener {
	return []trace.Listener{{Addr: netip.MustParseAddrPort("0.0.0.0:80"), Matches: true}}
}

func rule(certain bool) trace.FilterVerdict {
	return trace.FilterVerdict{
		Hook: trace.Forward, Backend: "nft", Family: "inet", Table: "filter", Chain: "fwd", Handle: 9,
		Rule: "tcp dport 80 drop", Certain: certain, Counted: true, Packets: 3,
	}
}

// deaf is the case of be, a router on the way back that does not answer ARP.
func deaf() trace.Case {
	c := replyDropped(vip4, "NEIGH_FAILED", "neigh_invalidate")
	c.Event.Device = eth0
	d, ok := Deaf(&c, &trace.HostState{
		SrcLocal: true, NextHop: trace.Neighbor{Addr: addr("10.2.0.1")}, NextHopOwner: be, NextHopDevice: eth0,
	})
	if !ok {
		panic("no case")
	}
	return d
}

// Each rule has cases that it explains, and near ones that it leaves alone.
func TestExplain(t *testing.T) {
	in := trace.Interface{Device: eth0}
	tests := []struct {
		name string
		c    trace.Case
		s    trace.HostState
		id   string // "" when nothing must be found
		dir  trace.Direction
		conf trace.Confidence
		fix  string // start of the first command
	}{
		// reply-no-route
		{"silent, no route back", request(trace.SymptomSilence, vip4),
			trace.HostState{DstLocal: true, Listeners: listening(), Back: noRoute(), PreviousHop: addr("10.2.0.1")},
			"reply-no-route", trace.Reply, trace.Certain, "ip netns exec be ip route add default via 10.2.0.1 dev eth0"},
		{"silent, no route back, IPv6", request(trace.SymptomSilence, vip6),
			trace.HostState{DstLocal: true, Listeners: listening(), Back: noRoute(), Gateways: []trace.Gateway{{Addr: addr("2001:db8:2::1"), Device: eth0}}},
			"reply-no-route", trace.Reply, trace.Certain, "ip netns exec be ip -6 route add default via 2001:db8:2::1 dev eth0"},
		{"silent, no route back, router of the path known", request(trace.SymptomSilence, vip4),
			trace.HostState{DstLocal: true, Listeners: listening(), Back: noRoute(), PreviousHop: addr("10.2.0.10"),
				PathGateways: []trace.Gateway{{Addr: addr("10.2.0.1"), Device: eth0}}},
			"reply-no-route", trace.Reply, trace.Certain, "ip netns exec be ip route add default via 10.2.0.1 dev eth0"},
		{"silent, no route back, no gateway known", request(trace.SymptomSilence, vip4),
			trace.HostState{DstLocal: true, Listeners: listening(), Back: noRoute()},
			"reply-no-route", trace.Reply, trace.Certain, "# ip netns exec be ip route add default via GATEWAY dev eth0"},
		{"a throw route ends the lookup", request(trace.SymptomSilence, vip4),
			trace.HostState{DstLocal: true, Listeners: listening(), Back: thrown(), PreviousHop: addr("10.2.0.1")},
			"reply-no-route", trace.Reply, trace.Certain, "ip netns exec be ip route del throw 198.51.100.0/24"},
		{"silent, but there is a route", request(trace.SymptomSilence, vip4),
			trace.HostState{DstLocal: true, Listeners: listening(), Back: found}, "", 0, 0, ""},
		{"silent, and nobody listens", request(trace.SymptomSilence, vip4),
			trace.HostState{DstLocal: true, Back: noRoute()}, "", 0, 0, ""},
		{"silent, and not this host's", request(trace.SymptomSilence, vip4),
			trace.HostState{Listeners: listening(), Back: noRoute()}, "", 0, 0, ""},
		{"silent, and the host could not be asked", request(trace.SymptomSilence, vip4), trace.HostState{}, "", 0, 0, ""},
		{"router without a route for the reply", replyDropped(vip4, "IP_INNOROUTES", "ip_error"),
			trace.HostState{Onward: noRoute(), Forwarding: true}, "reply-no-route", trace.Reply, trace.Certain, "# ip netns exec be ip route add default"},
		{"router without a route for the reply, IPv6", replyDropped(vip6, "IP_INNOROUTES", "ip6_pkt_drop"),
			trace.HostState{Onward: noRoute(), Forwarding: true}, "reply-no-route", trace.Reply, trace.Certain, "# ip netns exec be ip -6 route add default"},
		{"rp_filter that hides a missing route", dropped(vip4, "IP_RPFILTER", "ip_rcv_finish_core"),
			trace.HostState{DstLocal: true, In: in, Back: noRoute(), PreviousHop: addr("10.2.0.1")},
			"reply-no-route", trace.Reply, trace.Certain, "ip netns exec be ip route add default via 10.2.0.1 dev eth0"},
		// reply-route-rejected
		{"silent, blackhole", request(trace.SymptomSilence, vip4),
			trace.HostState{DstLocal: true, Listeners: listening(), Back: rejected("blackhole", "198.51.100.0/24")},
			"reply-route-rejected", trace.Reply, trace.Certain, "ip netns exec be ip route del blackhole 198.51.100.0/24"},
		{"router that refuses the reply", replyDropped(vip4, "NOT_SPECIFIED", "ip_error"),
			trace.HostState{Onward: rejected("unreachable", "198.51.100.7/32"), Forwarding: true},
			"reply-route-rejected", trace.Reply, trace.Certain, "ip netns exec be ip route del unreachable 198.51.100.7/32"},
		{"router that refuses the request", dropped(vip4, "NOT_SPECIFIED", "ip_error"),
			trace.HostState{Onward: rejected("prohibit", "203.0.113.0/24"), Forwarding: true},
			"request-route-rejected", trace.Request, trace.Certain, "ip netns exec be ip route del prohibit 203.0.113.0/24"},
		{"a rule refuses", request(trace.SymptomSilence, vip4),
			trace.HostState{DstLocal: true, Listeners: listening(), Back: trace.Lookup{Done: true, Errno: syscall.EACCES, Type: "prohibit", Rule: "100: from all to 198.51.100.0/24 prohibit"}},
			"reply-route-rejected", trace.Reply, trace.Certain, "ip netns exec be ip rule del pref 100 from all to 198.51.100.0/24 prohibit"},
		{"rp_filter that hides a blackhole", dropped(vip4, "IP_RPFILTER", "ip_rcv_finish_core"),
			trace.HostState{DstLocal: true, In: in, Back: rejected("blackhole", "0.0.0.0/0")},
			"reply-route-rejected", trace.Reply, trace.Certain, "ip netns exec be ip route del blackhole default"},
		{"a table that ends in an unreachable default, and a gateway is known", request(trace.SymptomSilence, vip4),
			trace.HostState{DstLocal: true, Listeners: listening(), PreviousHop: addr("10.2.0.1"),
				Back: trace.Lookup{Done: true, Errno: syscall.EHOSTUNREACH, Type: "unreachable", Prefix: netip.MustParsePrefix("0.0.0.0/0"), Table: 301}},
			"reply-route-rejected", trace.Reply, trace.Certain, "ip netns exec be ip route replace default via 10.2.0.1 dev eth0 table 301"},
		{"a mark that sends the answer to a rule that refuses", marked(5),
			trace.HostState{DstLocal: false, Onward: trace.Lookup{Done: true, Errno: syscall.EACCES, Type: "prohibit", Rule: "10: from all fwmark 0x5 prohibit"}},
			"reply-route-rejected", trace.Reply, trace.Certain, "ip netns exec be ip rule del pref 10 from all fwmark 0x5 prohibit"},
		{"a mark, and the answer has a route", marked(5), trace.HostState{Onward: found}, "netfilter-drop", trace.Reply, trace.Likely, "# ip netns exec be nft list ruleset"},
		{"no mark, and the answer has none", marked(0), trace.HostState{Onward: noRoute()}, "netfilter-drop", trace.Reply, trace.Likely, "# ip netns exec be nft list ruleset"},
		// rp-filter-drop
		{"request by the wrong device", dropped(vip4, "IP_RPFILTER", "ip_rcv_finish_core"),
			trace.HostState{DstLocal: true, In: trace.Interface{Device: vx0, RPFilter: 1, RPFilterAll: 1}, Back: found},
			"rp-filter-drop", trace.Request, trace.Certain, "ip netns exec be sysctl -w net.ipv4.conf.vx0.rp_filter=2"},
		{"reply by the wrong device", replyDropped(vip4, "IP_RPFILTER", "ip_rcv_finish_core"),
			trace.HostState{In: trace.Interface{Device: trace.Device{Index: 4, Name: "eth0.10"}, RPFilter: 1}, Onward: found, Back: found},
			"rp-filter-drop", trace.Reply, trace.Certain, "ip netns exec be sysctl -w net.ipv4.conf.eth0/10.rp_filter=2"},
		{"reply from a source without a route", replyDropped(vip4, "IP_RPFILTER", "ip_rcv_finish_core"),
			trace.HostState{In: in, Onward: found, Back: noRoute()},
			"rp-filter-drop", trace.Reply, trace.Certain, "ip netns exec be ip route add 203.0.113.80/32 dev eth0"},
		{"a kernel without reasons", dropped(vip4, "", "ip_rcv_finish_core"),
			trace.HostState{DstLocal: true, In: trace.Interface{Device: vx0, RPFilter: 1}, Back: found},
			"rp-filter-drop", trace.Request, trace.Likely, "ip netns exec be sysctl -w net.ipv4.conf.vx0.rp_filter=2"},
		{"a kernel without reasons, and no reverse-path filtering", dropped(vip4, "", "ip_rcv_finish_core"),
			trace.HostState{DstLocal: true, In: trace.Interface{Device: vx0}, Back: found}, "", 0, 0, ""},
		{"a kernel without reasons, and a source that is the host's own", dropped(vip4, "", "ip_rcv_finish_core.constprop.0"),
			trace.HostState{SrcLocal: true, In: trace.Interface{Device: vx0, RPFilter: 1}, Onward: byDefault(), Back: found}, "", 0, 0, ""},
		// forwarding-disabled and vip-not-local
		{"reply, forwarding off", replyDropped(vip4, "IP_INADDRERRORS", "ip_error"),
			trace.HostState{In: in, Onward: byDefault()}, "forwarding-disabled", trace.Reply, trace.Certain, "ip netns exec be sysctl -w net.ipv4.ip_forward=1"},
		{"reply, forwarding off on one device", replyDropped(vip4, "IP_INADDRERRORS", "ip_error"),
			trace.HostState{In: in, Onward: byDefault(), ForwardingAll: true}, "forwarding-disabled", trace.Reply, trace.Certain, "ip netns exec be sysctl -w net.ipv4.conf.eth0.forwarding=1"},
		{"reply, forwarding off, IPv6", replyDropped(vip6, "IP_INADDRERRORS", "ip6_forward"),
			trace.HostState{In: in, Onward: found}, "forwarding-disabled", trace.Reply, trace.Certain, "ip netns exec be sysctl -w net.ipv6.conf.all.forwarding=1"},
		{"reply, forwarding off on a VLAN, seen on the device below", replyDropped(vip4, "", "ip_error"),
			trace.HostState{In: trace.Interface{Device: trace.Device{Index: 9, Name: "eth0.5"}}, Onward: byDefault(), ForwardingAll: true},
			"forwarding-disabled", trace.Reply, trace.Certain, "ip netns exec be sysctl -w net.ipv4.conf.eth0/5.forwarding=1"},
		{"request, forwarding off, a route of its own", dropped(vip4, "IP_INADDRERRORS", "ip_error"),
			trace.HostState{In: trace.Interface{Device: vx0}, Onward: found}, "forwarding-disabled", trace.Request, trace.Certain, "ip netns exec be sysctl -w net.ipv4.ip_forward=1"},
		{"request, forwarding off, the default route, and the owner is on this node", dropped(vip4, "IP_INADDRERRORS", "ip_error"),
			trace.HostState{In: trace.Interface{Device: vx0}, Onward: byDefault(), Owners: []trace.Owner{{Place: trace.Place{Netns: 99}, Virtual: true}}},
			"forwarding-disabled", trace.Request, trace.Certain, "ip netns exec be sysctl"},
		{"request for an address that a server has lost", dropped(vip4, "IP_INADDRERRORS", "ip_error"),
			trace.HostState{In: trace.Interface{Device: vx0}, Onward: byDefault(), Listeners: listening()},
			"vip-not-local", trace.Request, trace.Certain, "ip netns exec be ip addr add 203.0.113.80/32 dev lo"},
		{"the same, and another server has it", dropped(vip4, "IP_INADDRERRORS", "ip_error"),
			trace.HostState{In: trace.Interface{Device: vx0}, Onward: byDefault(), Listeners: listening(), Owners: []trace.Owner{{Place: trace.Place{Netns: 99}, Virtual: true}}},
			"vip-not-local", trace.Request, trace.Certain, "ip netns exec be ip addr add 203.0.113.80/32 dev lo"},
		{"request through a gateway that serves the same port", dropped(vip4, "IP_INADDRERRORS", "ip_error"),
			trace.HostState{In: trace.Interface{Device: vx0}, Onward: byDefault(), Listeners: listening(), Owners: []trace.Owner{{Place: trace.Place{Netns: 99}}}},
			"forwarding-disabled", trace.Request, trace.Certain, "ip netns exec be sysctl"},
		{"request through a gateway that has only a default route", dropped(vip4, "IP_INADDRERRORS", "ip_error"),
			trace.HostState{In: trace.Interface{Device: vx0}, Onward: byDefault()}, "forwarding-disabled", trace.Request, trace.Certain, "ip netns exec be sysctl"},
		{"request for an address of lo that is still tentative", dropped(vip6, "IP_INADDRERRORS", "ip6_forward"),
			trace.HostState{In: in, Onward: trace.Lookup{Done: true, Type: "unicast", Prefix: netip.MustParsePrefix("2001:db8:80::50/128"), Device: trace.Device{Index: 1, Name: "lo"}}},
			"vip-not-local", trace.Request, trace.Likely, "ip netns exec be ip -6 addr add"},
		{"request that nobody owns, back by the device that it came by", dropped(vip4, "IP_INADDRERRORS", "ip_error"),
			trace.HostState{In: in, Onward: byDefault()}, "vip-not-local", trace.Request, trace.Likely, "ip netns exec be ip addr add"},
		{"the same, and another server has it, which nobody serves", dropped(vip4, "IP_INADDRERRORS", "ip_error"),
			trace.HostState{In: in, Onward: byDefault(), Owners: []trace.Owner{{Place: trace.Place{Netns: 99}, Virtual: true}}}, "vip-not-local", trace.Request, trace.Likely, "ip netns exec be ip addr add"},
		{"a router without a route for the request, and its owner on this node", dropped(vip4, "IP_INNOROUTES", "ip_error"),
			trace.HostState{In: in, Onward: noRoute(), Forwarding: true, Owners: []trace.Owner{{Place: trace.Place{Netns: 99}}}}, "request-no-route", trace.Request, trace.Certain, "# ip netns exec be ip route add 203.0.113.80/32 via GATEWAY"},
		{"a router without a route for the request, or a server without its address", dropped(vip4, "IP_INNOROUTES", "ip_error"),
			trace.HostState{In: in, Onward: noRoute(), Forwarding: true}, "request-no-route", trace.Request, trace.Possible, "# ip netns exec be ip route add"},
		{"a router without a route for the request, to which a default route leads", dropped(vip4, "IP_INNOROUTES", "ip_error"),
			trace.HostState{In: in, Onward: noRoute(), Forwarding: true, Sent: byDefault()}, "request-no-route", trace.Request, trace.Likely, "# ip netns exec be ip route add"},
		{"a host without a route for an address that is led to it alone", dropped(vip4, "IP_INNOROUTES", "ip_error"),
			trace.HostState{In: in, Onward: noRoute(), Forwarding: true, Sent: only("203.0.113.80/32")}, "vip-not-local", trace.Request, trace.Possible, "# ip netns exec be ip addr add"},
		{"the same, and another has that address", dropped(vip4, "IP_INNOROUTES", "ip_error"),
			trace.HostState{In: in, Onward: noRoute(), Forwarding: true, Sent: only("203.0.113.80/32"), Owners: []trace.Owner{{Place: trace.Place{Netns: 99}, Virtual: true}}},
			"request-no-route", trace.Request, trace.Likely, "# ip netns exec be ip route add"},
		{"a router without a route, IPv6, and a neighbour knows the way", dropped(vip6, "IP_INNOROUTES", "ip6_pkt_drop"),
			trace.HostState{In: in, Onward: noRoute(), Forwarding: true, Owners: []trace.Owner{{Place: trace.Place{Netns: 99}}}, Onwards: []trace.Gateway{{Addr: addr("2001:db8:2::9"), Device: vx0}}},
			"request-no-route", trace.Request, trace.Certain, "ip netns exec be ip -6 route add 2001:db8:80::50/128 via 2001:db8:2::9 dev vx0"},
		{"a router without a route that serves the same port", dropped(vip4, "IP_INNOROUTES", "ip_error"),
			trace.HostState{In: in, Onward: noRoute(), Forwarding: true, Sent: byDefault(), Listeners: listening(), Owners: []trace.Owner{{Place: trace.Place{Netns: 99}}}},
			"request-no-route", trace.Request, trace.Certain, "# ip netns exec be ip route add"},
		{"a server that forwards, without its address and without a route", dropped(vip4, "IP_INNOROUTES", "ip_error"),
			trace.HostState{In: in, Onward: noRoute(), Forwarding: true, Sent: byDefault(), Listeners: listening(), Owners: []trace.Owner{{Place: trace.Place{Netns: 99}, Virtual: true}}},
			"vip-not-local", trace.Request, trace.Certain, "ip netns exec be ip addr add"},
		{"a host that does not forward, without a route", dropped(vip4, "IP_INADDRERRORS", "ip_error"),
			trace.HostState{In: in, Onward: noRoute()}, "vip-not-local", trace.Request, trace.Likely, "ip netns exec be ip addr add"},
		{"a rule of the client's own host sends the request where there is no route", rerouted(),
			trace.HostState{Onward: noRoute()}, "request-no-route", trace.Request, trace.Certain, "# ip netns exec be ip route add"},
		{"the same, and the route there refuses it", rerouted(),
			trace.HostState{Onward: rejected("unreachable", "203.0.113.0/24")}, "request-route-rejected", trace.Request, trace.Certain, "ip netns exec be ip route del unreachable"},
		{"request that nobody owns, out of a tunnel, the default route", dropped(vip4, "IP_INADDRERRORS", "ip_error"),
			trace.HostState{In: trace.Interface{Device: vx0, Kind: "vxlan"}, Onward: byDefault()}, "vip-not-local", trace.Request, trace.Likely, "ip netns exec be ip addr add"},
		{"request that nobody owns, no route, IPv6", dropped(vip6, "IP_INNOROUTES", "ip6_pkt_drop"),
			trace.HostState{In: in, Onward: noRoute(), Listeners: listening(), Forwarding: true},
			"vip-not-local", trace.Request, trace.Certain, "ip netns exec be ip -6 addr add 2001:db8:80::50/128 dev lo"},
		{"a circle through the server", request(trace.SymptomLoop, vip4),
			trace.HostState{In: in, Onward: byDefault(), Listeners: listening(), Forwarding: true}, "vip-not-local", trace.Request, trace.Certain, "ip netns exec be ip addr add"},
		{"a circle through a gateway that serves the same port", request(trace.SymptomLoop, vip4),
			trace.HostState{In: trace.Interface{Device: vx0}, Onward: found, Listeners: listening(), Forwarding: true}, "", 0, 0, ""},
		{"a server that sends its VIP's packets to a dead gateway", func() trace.Case {
			c := dropped(vip4, "NEIGH_FAILED", "neigh_invalidate")
			c.Event.OutIndex = c.Event.InIndex
			return c
		}(), trace.HostState{In: in, Onward: byDefault(), Listeners: listening(), Forwarding: true}, "vip-not-local", trace.Request, trace.Certain, "ip netns exec be ip addr add"},
		{"a circle through a router", request(trace.SymptomLoop, vip4), trace.HostState{In: in, Onward: byDefault(), Forwarding: true}, "", 0, 0, ""},
		{"forwarding on, and a route", dropped(vip4, "IP_INADDRERRORS", "ip_error"), trace.HostState{In: in, Onward: found, Forwarding: true}, "", 0, 0, ""},
		{"a drop for another cause", replyDropped(vip4, "PKT_TOO_BIG", "ip_forward"), trace.HostState{In: in, Onward: found}, "", 0, 0, ""},
		// neighbor-unresolved
		{"dead gateway", replyDropped(vip4, "NEIGH_FAILED", "neigh_invalidate"),
			trace.HostState{Onward: byDefault(), NextHop: trace.Neighbor{Addr: addr("10.2.0.1"), Device: eth0, State: "FAILED"}},
			"neighbor-unresolved", trace.Reply, trace.Certain, "# ip netns exec be ip route replace default via GATEWAY dev eth0"},
		{"a queue that is full while the next hop is asked", dropped(vip4, "NEIGH_QUEUEFULL", "__neigh_event_send"),
			trace.HostState{Onward: byDefault(), NextHop: trace.Neighbor{Addr: addr("10.2.0.1"), Device: eth0, State: "INCOMPLETE"}}, "", 0, 0, ""},
		{"a queue that was full, and the next hop has answered, no reason given", dropped(vip4, "", "__neigh_event_send"),
			trace.HostState{Onward: byDefault(), NextHop: trace.Neighbor{Addr: addr("10.2.0.1"), Device: eth0, State: "REACHABLE"}}, "", 0, 0, ""},
		{"a queue that was full, and the next hop does not answer", dropped(vip4, "", "__neigh_event_send"),
			trace.HostState{Onward: byDefault(), NextHop: trace.Neighbor{Addr: addr("10.2.0.1"), Device: eth0, State: "FAILED"}},
			"neighbor-unresolved", trace.Request, trace.Certain, "# ip netns exec be ip route replace"},
		{"dead host on the link, IPv6", dropped(vip6, "NOT_SPECIFIED", "neigh_invalidate"),
			trace.HostState{Onward: found, NextHop: trace.Neighbor{Addr: vip6.Dst.Addr(), Device: eth0, State: "FAILED"}},
			"neighbor-unresolved", trace.Request, trace.Certain, "# bring 2001:db8:80::50 back"},
		{"a next hop that is there", replyDropped(vip4, "NEIGH_FAILED", "neigh_invalidate"),
			trace.HostState{Onward: byDefault(), NextHop: trace.Neighbor{Addr: addr("10.2.0.1"), Device: eth0, State: "FAILED"},
				NextHopOwner: trace.Place{Netns: 8, Name: "rt"}, NextHopDevice: trace.Device{Index: 4, Name: "lan0"}},
			"neighbor-unresolved", trace.Reply, trace.Likely, "# ip netns exec rt sysctl -a"},
		{"a next hop that is there, IPv6", dropped(vip6, "NOT_SPECIFIED", "neigh_invalidate"),
			trace.HostState{Onward: found, NextHop: trace.Neighbor{Addr: vip6.Dst.Addr(), Device: eth0, State: "FAILED"},
				NextHopOwner: trace.Place{Netns: 8, Name: "rt"}, NextHopDevice: eth0},
			"neighbor-unresolved", trace.Request, trace.Likely, "# ip netns exec rt nft list ruleset"},
		{"a next hop that could not be read", dropped(vip4, "NEIGH_FAILED", "neigh_invalidate"), trace.HostState{},
			"neighbor-unresolved", trace.Request, trace.Certain, "# ip netns exec be ip route get 203.0.113.80"},
		{"a next hop that refuses ARP from a source that it would reach by another device", deaf(),
			trace.HostState{In: trace.Interface{Device: eth0, RPFilter: 1, RPFilterAll: 1}, Back: trace.Lookup{Done: true, Type: "unicast", Device: vx0}},
			"rp-filter-drop", trace.Reply, trace.Likely, "ip netns exec be sysctl -w net.ipv4.conf.eth0.rp_filter=2"},
		{"a next hop that does not answer for another cause", deaf(),
			trace.HostState{In: trace.Interface{Device: eth0, RPFilter: 1}, Back: found}, "", 0, 0, ""},
		// MTU and fragments
		{"an ICMP error about the MTU, dropped", tooBig(trace.HookDrop), trace.HostState{Onward: found}, "mtu-blackhole", trace.Request, trace.Certain, "# accept icmp type destination-unreachable icmp code frag-needed (nft) in be"},
		{"an ICMP error about the MTU, not heeded", tooBig(trace.HookICMPSent), trace.HostState{Onward: found}, "mtu-blackhole", trace.Request, trace.Likely, "# let ICMP"},
		{"a later fragment, dropped by a filter", fragment("NETFILTER_DROP"), trace.HostState{Onward: found}, "fragment-drop", trace.Request, trace.Certain, "# accept fragments in be"},
		{"a later fragment, and the rule that did it", fragment("NETFILTER_DROP"), trace.HostState{Onward: found, Filters: []trace.FilterVerdict{rule(true)}},
			"fragment-drop", trace.Request, trace.Certain, "ip netns exec be nft insert rule inet filter fwd handle 9 ip saddr 198.51.100.7 ip daddr 203.0.113.80 ip frag-off \\& 0x3fff != 0 accept"},
		{"a later fragment, and what may have done it", fragment("NETFILTER_DROP"), trace.HostState{Onward: found, Filters: []trace.FilterVerdict{rule(false), rule(false)}},
			"fragment-drop", trace.Request, trace.Certain, "# ip netns exec be nft insert rule inet filter fwd handle 9"},
		{"an ICMP error, and the rule that did it", tooBig(trace.HookDrop), trace.HostState{Onward: found, Filters: []trace.FilterVerdict{rule(true)}},
			"mtu-blackhole", trace.Request, trace.Certain, "ip netns exec be nft insert rule inet filter fwd handle 9 icmp type destination-unreachable icmp code frag-needed accept"},
		{"an ICMP error, dropped on another ground", func() trace.Case {
			c := tooBig(trace.HookDrop)
			c.Event.Reason = "IP_RPFILTER"
			return c
		}(), trace.HostState{Onward: found}, "mtu-blackhole", trace.Request, trace.Certain, "# mend what drops ICMP errors in be (IP_RPFILTER"},
		{"a later fragment, dropped by something", fragment("TC_INGRESS"), trace.HostState{Onward: found}, "fragment-drop", trace.Request, trace.Likely, "# send datagrams that fit"},
		{"fragments that never became whole", dropped(udp4, "FRAG_REASM_TIMEOUT", "ip_expire"), trace.HostState{Onward: found}, "fragment-drop", trace.Request, trace.Likely, "# find where"},
		{"a first fragment, dropped by its port", func() trace.Case {
			c := dropped(udp4, "NETFILTER_DROP", "nft_do_chain")
			c.Event.MoreFragments = true
			return c
		}(), trace.HostState{Filters: []trace.FilterVerdict{rule(true)}}, "netfilter-drop", trace.Request, trace.Certain, "ip netns exec be nft insert rule inet filter fwd handle 9 ip daddr 203.0.113.80 udp dport 53 accept"},

		// netfilter
		{"a rule", dropped(vip4, "NETFILTER_DROP", "nft_do_chain"), trace.HostState{Filters: []trace.FilterVerdict{rule(true)}},
			"netfilter-drop", trace.Request, trace.Certain, "ip netns exec be nft insert rule inet filter fwd handle 9 ip daddr 203.0.113.80 tcp dport 80 accept"},
		{"a rule, reply", replyDropped(vip6, "NETFILTER_DROP", "nft_do_chain"), trace.HostState{Filters: []trace.FilterVerdict{rule(true)}},
			"netfilter-drop", trace.Reply, trace.Certain, "ip netns exec be nft insert rule inet filter fwd handle 9 ip6 saddr 2001:db8:80::50 tcp sport 80 accept"},
		{"a policy", dropped(vip4, "NETFILTER_DROP", "nft_do_chain"),
			trace.HostState{Filters: []trace.FilterVerdict{{Hook: trace.Input, Backend: "nft", Family: "ip", Table: "t", Chain: "in", Policy: true, Certain: true}}},
			"netfilter-drop", trace.Request, trace.Certain, "ip netns exec be nft add rule ip t in ip daddr 203.0.113.80 tcp dport 80 accept"},
		{"a policy that drops both ways", dropped(vip4, "NETFILTER_DROP", "nft_do_chain"),
			trace.HostState{Filters: []trace.FilterVerdict{rule(true)}, ReplyFilters: []trace.FilterVerdict{rule(true)}},
			"netfilter-drop", trace.Request, trace.Certain, "ip netns exec be nft insert rule inet filter fwd handle 9 ip daddr 203.0.113.80 tcp dport 80 accept"},
		{"a legacy rule", dropped(vip6, "NETFILTER_DROP", "nf_hook_slow"),
			trace.HostState{Filters: []trace.FilterVerdict{{Hook: trace.Forward, Backend: "iptables-legacy", Family: "ip6", Table: "filter", Chain: "FORWARD", Line: 4, Certain: true}}},
			"netfilter-drop", trace.Request, trace.Certain, "ip netns exec be ip6tables-legacy -t filter -I FORWARD 4 -p tcp -d 2001:db8:80::50 --dport 80 -j ACCEPT"},
		{"one of two rules", dropped(vip4, "NETFILTER_DROP", "nft_do_chain"), trace.HostState{Filters: []trace.FilterVerdict{rule(false), rule(false)}},
			"netfilter-drop", trace.Request, trace.Certain, "# ip netns exec be nft insert rule"},
		{"no rule to be found", dropped(vip4, "NETFILTER_DROP", "nf_hook_slow"), trace.HostState{}, "netfilter-drop", trace.Request, trace.Likely, "# ip netns exec be nft list ruleset"},
		{"a kernel without reasons", dropped(vip4, "", "nft_do_chain"), trace.HostState{Filters: []trace.FilterVerdict{rule(true)}}, "netfilter-drop", trace.Request, trace.Certain, "ip netns exec be nft insert"},
		{"a bridge's early hook, which gives no reason", dropped(vip4, "NOT_SPECIFIED", "br_handle_frame"),
			trace.HostState{Onward: noRoute(), Filters: []trace.FilterVerdict{rule(true)}}, "netfilter-drop", trace.Request, trace.Certain, "ip netns exec be nft insert"},
		{"a rule of a host that a bridge flooded a copy to", flooded(), trace.HostState{In: in, Onward: noRoute(), Filters: []trace.FilterVerdict{rule(true)}}, "", 0, 0, ""},
		{"a rule of the bridge itself", flooded(),
			trace.HostState{In: trace.Interface{Device: trace.Device{Index: 9, Name: "br0"}, Kind: "bridge"}, Onward: noRoute(), Filters: []trace.FilterVerdict{rule(true)}},
			"netfilter-drop", trace.Request, trace.Certain, "ip netns exec be nft insert"},
		{"a bridge port that is blocked", dropped(vip4, "", "br_handle_frame"), trace.HostState{Onward: noRoute()}, "", 0, 0, ""},
		{"a rule that answers", func() trace.Case {
			c := dropped(vip4, "NETFILTER_DROP", "nft_do_chain")
			c.Rejected = true
			return c
		}(), trace.HostState{Filters: []trace.FilterVerdict{rule(true)}}, "netfilter-reject", trace.Request, trace.Certain, "ip netns exec be nft insert"},
		{"a rule, and a connection older than we are", func() trace.Case {
			c := dropped(vip4, "NETFILTER_DROP", "nft_do_chain")
			c.Path.Guessed = true
			return c
		}(), trace.HostState{Filters: []trace.FilterVerdict{rule(true)}}, "netfilter-drop", trace.Request, trace.Likely, "ip netns exec be nft insert"},
		// port-not-listening
		{"nobody listens, a broadcast", request(trace.SymptomRefused, vip4), trace.HostState{Onward: found}, "", 0, 0, ""},
		{"nobody listens, and the host cannot be asked", request(trace.SymptomRefused, vip4), trace.HostState{},
			"port-not-listening", trace.Request, trace.Certain, "# start the server"},
		{"nobody listens", request(trace.SymptomRefused, vip4), trace.HostState{DstLocal: true},
			"port-not-listening", trace.Request, trace.Certain, "# start the server"},
		{"somebody listens elsewhere", request(trace.SymptomRefused, vip4),
			trace.HostState{DstLocal: true, Listeners: []trace.Listener{{Addr: netip.MustParseAddrPort("127.0.0.1:80")}}},
			"port-not-listening", trace.Request, trace.Certain, "# let the server that listens on 127.0.0.1:80"},
		{"somebody listens by now", request(trace.SymptomRefused, vip4), trace.HostState{DstLocal: true, Listeners: listening()},
			"port-not-listening", trace.Request, trace.Likely, "# start the server"},
	}
	explained := make(map[string]bool)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f, ok := Explain(&tt.c, &tt.s)
			if !ok {
				f = trace.Finding{}
			}
			if f.ID != tt.id {
				t.Fatalf("finding %q, want %q (%s)", f.ID, tt.id, f.Cause)
			}
			if tt.id == "" {
				return
			}
			explained[f.ID] = true
			if f.Direction != tt.dir || f.Confidence != tt.conf {
				t.Errorf("%s %s, want %s %s", f.Direction, f.Confidence, tt.dir, tt.conf)
			}
			if len(f.Fix) == 0 || !strings.HasPrefix(f.Fix[0], tt.fix) {
				t.Errorf("fix %q, want %q", f.Fix, tt.fix)
			}
			checkComplete(t, &f)
		})
	}
	for _, r := range Rules() {
		if !explained[r.ID] && !explainedElsewhere[r.ID] && !shapes[r.ID] { // shapes have TestExplainShape
			t.Errorf("rule %s has no case", r.ID)
		}
	}
}

// checkComplete checks what every finding must have.
func checkComplete(t *testing.T, f *trace.Finding) {
	t.Helper()
	if f.Summary == "" || f.Cause == "" || len(f.Verify) == 0 || len(f.Evidence) == 0 || f.Where.Device == "" || f.Where.Hook == "" {
		t.Errorf("incomplete: %+v", f)
	}
	if f.Count != 1 || f.FirstSeen.IsZero() || len(f.Connections) != 1 || f.Where.Place != be || f.Severity == 0 {
		t.Errorf("incomplete: %+v", f)
	}
	for _, text := range append(append([]string{f.Summary, f.Cause}, f.Fix...), f.Verify...) {
		if strings.Contains(text, "%!") || strings.Contains(text, "invalid IP") || strings.Contains(text, "  dev  ") {
			t.Errorf("badly put: %q", text)
		}
	}
}

// A case that no rule wants must not cost a look at the host.
func TestQuestion(t *testing.T) {
	for name, tt := range map[string]struct {
		c    trace.Case
		want bool
	}{
		"routing drop":   {dropped(vip4, "IP_INNOROUTES", "ip_error"), true},
		"filter drop":    {dropped(vip4, "NETFILTER_DROP", "nft_do_chain"), true},
		"neighbour drop": {dropped(vip4, "NEIGH_FAILED", "neigh_invalidate"), true},
		"silence":        {request(trace.SymptomSilence, vip4), true},
		"checksum":       {dropped(vip4, "TCP_CSUM", "tcp_v4_rcv"), false},
		"full queue":     {dropped(vip4, "QDISC_DROP", "__dev_xmit_skb"), false},
	} {
		if _, got := Question(&tt.c); got != tt.want {
			t.Errorf("%s: asked %v, want %v", name, got, tt.want)
		}
	}
}

// After a DNAT the host answers from another address than the one that the request named.
func TestQuestionFollowsTheAnswer(t *testing.T) {
	c := request(trace.SymptomSilence, vip4)
	c.Miss = trace.Event{Hook: trace.HookRouteMiss4, Tuple: tuple("10.2.0.20:8080", "198.51.100.7:41822"), Mark: 5}
	q, _ := Question(&c)
	if q.Packet.Dst != netip.MustParseAddrPort("10.2.0.20:8080") || q.Mark != 5 {
		t.Errorf("asks about %s with mark %d", q.Packet, q.Mark)
	}
}

// A bridge's filter that drops the request between two ports may drop the answer too.
func TestReplyQuestionOnABridge(t *testing.T) {
	c := flooded()
	c.Event.Device = trace.Device{Index: 5, Name: "p5"}
	q, ok := Question(&c)
	if !ok || q.Out != 5 {
		t.Fatalf("question = %t, out %d", ok, q.Out)
	}
	r, ok := ReplyQuestion(&q)
	if !ok || r.In != 5 || r.Out != eth0.Index || r.Packet != vip4.Reverse() || !r.Flags.IsSYNACK() || r.Conntrack.Known() {
		t.Errorf("reply question = %t, %+v", ok, r)
	}
	c.Event.Device = eth0 // at the port that it came by: nobody knows where it was to go
	if q, _ = Question(&c); q.Out != 0 {
		t.Errorf("out %d", q.Out)
	}
	if _, ok := ReplyQuestion(&q); ok {
		t.Error("asks for the answer, which would come by an unknown port")
	}
}

func TestNetfilterHooks(t *testing.T) {
	tests := map[string]struct {
		ev   trace.Event
		want trace.NetfilterHook
	}{
		"before routing":        {trace.Event{Device: eth0, InIndex: 2}, trace.Prerouting},
		"forwarded":             {trace.Event{Device: eth0, InIndex: 2, OutIndex: 3, HasRoute: true, Input: "ip_forward"}, trace.Forward},
		"forwarded, going out":  {trace.Event{Device: vx0, InIndex: 2, OutIndex: 3, HasRoute: true, Input: "ip_forward"}, trace.Postrouting},
		"forwarded, IPv6":       {trace.Event{Device: eth0, InIndex: 2, OutIndex: 3, HasRoute: true, Input: "ip6_forward"}, trace.Forward},
		"back where it came by": {trace.Event{Device: eth0, InIndex: 2, OutIndex: 2, HasRoute: true, Input: "ip_forward"}, trace.Forward},
		"for this host":         {trace.Event{Device: eth0, InIndex: 2, OutIndex: 1, HasRoute: true, Input: "ip_local_deliver"}, trace.Input},
		"made here":             {trace.Event{OutIndex: 2, HasRoute: true}, trace.Output},
		"made here, going out":  {trace.Event{Device: eth0, OutIndex: 2, HasRoute: true}, trace.Postrouting},
	}
	for name, tt := range tests {
		if got := netfilterHooks(&trace.Case{Event: tt.ev})[0]; got != tt.want {
			t.Errorf("%s: %s, want %s", name, got, tt.want)
		}
	}
}

// A server that lets go what was meant for it is suspected before the router that drops it.
func TestSuspects(t *testing.T) {
	c := dropped(vip4, "IP_INNOROUTES", "ip_error")
	hop := func(ns trace.Netns, in, out uint32) trace.Hop {
		return trace.Hop{Place: trace.Place{Netns: ns}, In: trace.Device{Index: in}, Out: trace.Device{Index: out}, Tuple: vip4}
	}
	c.Path.Request = []trace.Hop{hop(1, 0, 2), hop(2, 2, 3), hop(3, 2, 2), hop(4, 3, 0)}
	got := Suspects(&c)
	if len(got) != 2 || got[0].Place.Netns != 3 || got[1].Place.Netns != 2 {
		t.Errorf("suspects: %+v", got)
	}
	stray := c
	stray.Symptom = trace.SymptomStray
	if got := Suspects(&stray); len(got) != 1 || got[0].Place.Netns != 3 {
		t.Errorf("of a stray: %+v", got)
	}
	if r := replyDropped(vip4, "IP_INNOROUTES", "ip_error"); Suspects(&r) != nil {
		t.Error("a reply has suspects")
	}
}

func TestCatalogue(t *testing.T) {
	seen := make(map[string]bool)
	for _, r := range Rules() {
		if r.ID == "" || r.Title == "" || len(r.Doc) < 80 || r.Severity == 0 || r.explain == nil || seen[r.ID] {
			t.Errorf("rule %q is not complete, or is there twice", r.ID)
		}
		seen[r.ID] = true
	}
}

func TestCommandsAreSafeToPaste(t *testing.T) {
	for _, tt := range []struct {
		place trace.Place
		want  string
	}{
		{trace.Place{Name: "be"}, "ip netns exec be ip route"},
		{trace.Place{Name: "a b;rm -rf /"}, "ip netns exec 'a b;rm -rf /' ip route"},
		{trace.Place{Name: "it's"}, `ip netns exec 'it'\''s' ip route`},
		{trace.Place{Host: true}, "ip route"},
		{trace.Place{Netns: 5}, "# in network namespace 5, which has no name and no process: ip route"},
		{trace.Place{PID: 42}, "nsenter --target 42 --net ip route"},
	} {
		if got := at(tt.place, "ip route"); got != tt.want {
			t.Errorf("%+v: %s, want %s", tt.place, got, tt.want)
		}
	}
}
