package lab

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// host is a namespace that exists.
type host struct {
	spec   Host
	netns  string // name under /run/netns
	family Family
	ns     netns.NsHandle
	nl     *netlink.Handle
	state  string // directory of its switch

	daemons map[string]daemon // of its switch, by program
}

// newHost makes the namespace, with its settings and lo up.
func newHost(spec Host, name string, f Family) (*host, error) {
	ns, err := createNamespace(name)
	if err != nil {
		return nil, err
	}
	h := &host{spec: spec, netns: name, family: f, ns: ns}
	if err := h.prepare(); err != nil {
		h.close()
		if undo := removeNamespace(name); undo != nil {
			return nil, fmt.Errorf("%w (and %w)", err, undo)
		}
		return nil, err
	}
	return h, nil
}

// prepare sets the namespace's sysctls and brings lo up.
func (h *host) prepare() error {
	nl, err := netlink.NewHandleAt(h.ns, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink in %s: %w", h.netns, err)
	}
	h.nl = nl
	err = enter(h.ns, func() error {
		if err := writeBaseline(h.family); err != nil {
			return err
		}
		for _, s := range h.spec.Sysctls {
			if err := writeSysctl(s); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("prepare %s: %w", h.netns, err)
	}
	return h.setUp("lo")
}

// close releases the handles, and with them the namespace's lock.
func (h *host) close() {
	if h.nl != nil {
		h.nl.Close()
		h.nl = nil
	}
	if h.ns.IsOpen() {
		h.ns.Close()
	}
}

// link looks a device up.
func (h *host) link(device string) (netlink.Link, error) {
	l, err := h.nl.LinkByName(device)
	return l, wrap("find device "+device+" in "+h.netns, err)
}

// setUp brings a device up.
func (h *host) setUp(device string) error {
	l, err := h.link(device)
	if err != nil {
		return err
	}
	return wrap("set "+device+" up", h.nl.LinkSetUp(l))
}

// setDown takes a device down.
func (h *host) setDown(device string) error {
	l, err := h.link(device)
	if err != nil {
		return err
	}
	return wrap("set "+device+" down", h.nl.LinkSetDown(l))
}

// addBridge makes a bridge.
func (h *host) addBridge(name string) error {
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}}
	if err := h.nl.LinkAdd(bridge); err != nil {
		return fmt.Errorf("add bridge %s: %w", name, err)
	}
	return h.setUp(name)
}

// addVeth makes a pair of devices, one here and one in the peer's namespace, without passing through any other.
func (h *host) addVeth(device string, index int, peer *host, peerDevice string) error {
	veth := netlink.NewVeth(netlink.LinkAttrs{Name: device, Index: index})
	veth.PeerName = peerDevice
	veth.PeerNamespace = netlink.NsFd(peer.ns)
	return wrap("add veth "+device, h.nl.LinkAdd(veth))
}

// addPort brings a link's end up, as a port of the host's bridge if it has one.
func (h *host) addPort(device string) error {
	l, err := h.link(device)
	if err != nil {
		return err
	}
	if h.spec.Bridge != "" {
		bridge, err := h.link(h.spec.Bridge)
		if err != nil {
			return err
		}
		if err := h.nl.LinkSetMaster(l, bridge); err != nil {
			return fmt.Errorf("add %s to %s: %w", device, h.spec.Bridge, err)
		}
	}
	return wrap("set "+device+" up", h.nl.LinkSetUp(l))
}

// addTunnel makes a VXLAN device.
func (h *host) addTunnel(t Tunnel) error {
	vxlan := &netlink.Vxlan{
		LinkAttrs: netlink.LinkAttrs{Name: t.Device},
		VxlanId:   t.VNI, SrcAddr: t.Local.AsSlice(), Group: t.Remote.AsSlice(), Port: 4789, Learning: true,
	}
	if t.Port != 0 {
		vxlan.Port = t.Port
	}
	if err := h.nl.LinkAdd(vxlan); err != nil {
		return fmt.Errorf("add vxlan %s: %w", t.Device, err)
	}
	return h.setUp(t.Device)
}

// addAddress puts an address on a device, usable at once.
func (h *host) addAddress(a Address) error {
	l, err := h.link(a.Device)
	if err != nil {
		return err
	}
	addr := &netlink.Addr{IPNet: ipNet(a.Prefix)}
	if a.Prefix.Addr().Is6() {
		addr.Flags = unix.IFA_F_NODAD
	}
	return wrap("add address "+a.Prefix.String(), h.nl.AddrAdd(l, addr))
}

// deleteAddress takes an address away.
func (h *host) deleteAddress(a Address) error {
	l, err := h.link(a.Device)
	if err != nil {
		return err
	}
	return wrap("delete address "+a.Prefix.String(), h.nl.AddrDel(l, &netlink.Addr{IPNet: ipNet(a.Prefix)}))
}

// addRoute adds a route.
func (h *host) addRoute(r Route) error {
	route, err := h.route(r)
	if err != nil {
		return err
	}
	return wrap("add route "+r.String(), h.nl.RouteAdd(route))
}

// deleteRoute deletes a route.
func (h *host) deleteRoute(r Route) error {
	route, err := h.route(r)
	if err != nil {
		return err
	}
	return wrap("delete route "+r.String(), h.nl.RouteDel(route))
}

// route translates a Route for netlink.
func (h *host) route(r Route) (*netlink.Route, error) {
	route := &netlink.Route{Dst: ipNet(r.To), Table: r.Table, Type: routeTypes[r.Type], Family: netlinkFamily(r.To.Addr())}
	if r.Via.IsValid() {
		route.Gw = r.Via.AsSlice()
	}
	if r.Device != "" {
		l, err := h.link(r.Device)
		if err != nil {
			return nil, err
		}
		route.LinkIndex = l.Attrs().Index
		if !r.Via.IsValid() && r.To.Addr().Is4() {
			route.Scope = netlink.SCOPE_LINK
			if r.Type == "local" {
				route.Scope = netlink.SCOPE_HOST
			}
		}
	}
	return route, nil
}

// addRule adds a routing policy rule.
func (h *host) addRule(r Rule) error {
	rule := netlink.NewRule()
	rule.Priority = r.Priority
	rule.Family = unix.AF_INET
	if h.family == IPv6 {
		rule.Family = unix.AF_INET6
	}
	if r.From.IsValid() {
		rule.Src = ipNet(r.From)
	}
	if r.To.IsValid() {
		rule.Dst = ipNet(r.To)
	}
	rule.Table = r.Table
	rule.Mark = r.Mark
	rule.Type = ruleTypes[r.Type]
	return wrap("add rule "+r.String(), h.nl.RuleAdd(rule))
}

// setSysctl changes a setting of the namespace.
func (h *host) setSysctl(s Sysctl) error {
	return enter(h.ns, func() error { return writeSysctl(s) })
}

// routeTypes are the kernel's numbers (enum in include/uapi/linux/rtnetlink.h).
var routeTypes = map[string]int{
	"": unix.RTN_UNICAST, "blackhole": unix.RTN_BLACKHOLE, "unreachable": unix.RTN_UNREACHABLE, "prohibit": unix.RTN_PROHIBIT, "local": unix.RTN_LOCAL,
}

// ruleTypes are the actions of rules (enum in include/uapi/linux/fib_rules.h).
var ruleTypes = map[string]uint8{"": 1, "blackhole": 6, "unreachable": 7, "prohibit": 8}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func netlinkFamily(a netip.Addr) int {
	if a.Is6() {
		return netlink.FAMILY_V6
	}
	return netlink.FAMILY_V4
}

// setMTU changes the largest packet that a device sends, in bytes.
func (h *host) setMTU(device string, mtu int) error {
	l, err := h.link(device)
	if err != nil {
		return err
	}
	return wrap("set MTU of "+device, h.nl.LinkSetMTU(l, mtu))
}
