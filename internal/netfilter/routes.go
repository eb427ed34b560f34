package netfilter

import (
	"errors"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/replypath/replypath/pkg/trace"
)

// kernelRoutes asks the routing tables of the calling thread's namespace.
type kernelRoutes struct {
	types map[netip.Addr]uint8
}

// addrType returns the type of an address as the kernel's filters see it.
func (k *kernelRoutes) addrType(a netip.Addr) (uint8, bool) {
	if !a.IsValid() {
		return 0, false
	}
	if t, ok := k.types[a]; ok {
		return t, true
	}
	look := addrType4
	if a.Is6() {
		look = addrType6
	}
	t, ok := look(a)
	if ok {
		if k.types == nil {
			k.types = map[netip.Addr]uint8{}
		}
		k.types[a] = t
	}
	return t, ok
}

// addrType4 follows inet_addr_type in net/ipv4/fib_frontend.c: what is not in
// table local is unicast.
func addrType4(a netip.Addr) (uint8, bool) {
	switch {
	case a.IsMulticast():
		return unix.RTN_MULTICAST, true
	case a.As4()[0] == 0 || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return unix.RTN_BROADCAST, true
	}
	found, err := netlink.RouteGet(a.AsSlice())
	if err != nil {
		return unix.RTN_UNICAST, noRoute(err)
	}
	if len(found) > 0 && (found[0].Type == unix.RTN_LOCAL || found[0].Type == unix.RTN_BROADCAST) {
		return uint8(found[0].Type), true
	}
	return unix.RTN_UNICAST, true
}

// addrType6 follows nft_fib6_eval_type in net/ipv6/netfilter/nft_fib_ipv6.c: a
// destination without route is of the type of that failure.
func addrType6(a netip.Addr) (uint8, bool) {
	found, err := netlink.RouteGet(a.AsSlice())
	switch {
	case errors.Is(err, unix.EINVAL):
		return unix.RTN_BLACKHOLE, true
	case errors.Is(err, unix.EACCES):
		return unix.RTN_PROHIBIT, true
	case err != nil && noRoute(err):
		return unix.RTN_UNREACHABLE, true
	case err != nil:
		return 0, false
	case len(found) > 0 && (found[0].Type == unix.RTN_LOCAL || found[0].Type == unix.RTN_ANYCAST):
		return uint8(found[0].Type), true
	case a.IsMulticast():
		return unix.RTN_MULTICAST, true
	case a.IsUnspecified():
		return unix.RTN_UNSPEC, true
	}
	return unix.RTN_UNICAST, true
}

// noRoute reports an error that means that there is no route.
func noRoute(err error) bool {
	for _, e := range []unix.Errno{unix.ENETUNREACH, unix.EHOSTUNREACH, unix.EINVAL, unix.EACCES} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// reaches follows nft_fib4_eval and nft_fib6_eval: a unicast route of which a
// next hop uses the device. The lookup is from the packet's destination where
// this host owns it, since rules may choose the table by it.
func (k *kernelRoutes) reaches(to, from netip.Addr, device, mark uint32) (reached, known bool) {
	o := &netlink.RouteGetOptions{Mark: mark, FIBMatch: true}
	if to.Is6() {
		o.OifIndex = int(device)
	}
	if t, ok := k.addrType(from); ok && t == unix.RTN_LOCAL {
		o.SrcAddr = from.AsSlice()
	}
	found, err := netlink.RouteGetWithOptions(to.AsSlice(), o)
	switch {
	case err != nil:
		return false, noRoute(err)
	case len(found) == 0:
		return false, false
	}
	r := found[0]
	if r.Type != unix.RTN_UNICAST {
		return false, true
	}
	return r.LinkIndex == int(device) || slices.ContainsFunc(r.MultiPath, func(n *netlink.NexthopInfo) bool {
		return n.LinkIndex == int(device)
	}), true
}

// isPort reports whether a device is a port of a bridge.
func (k *kernelRoutes) isPort(index uint32) bool {
	_, ok := k.bridgeOf(index)
	return ok
}

// bridgeOf returns the bridge that a device is a port of.
func (k *kernelRoutes) bridgeOf(index uint32) (trace.Interface, bool) {
	l, err := netlink.LinkByIndex(int(index))
	if err != nil || l.Attrs().MasterIndex == 0 {
		return trace.Interface{}, false
	}
	m, err := netlink.LinkByIndex(l.Attrs().MasterIndex)
	if err != nil || m.Type() != "bridge" {
		return trace.Interface{}, false
	}
	a := m.Attrs()
	return trace.Interface{Device: trace.Device{Index: uint32(a.Index), Name: a.Name}, Kind: "bridge"}, true
}
