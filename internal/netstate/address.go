package netstate

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/replypath/replypath/pkg/trace"
)

// Address is an address of a namespace, with the prefix of its link.
type Address struct {
	Device  trace.Device
	Prefix  netip.Prefix
	MAC     string // of the device; "" when it has none
	Up      bool   // the device is up, and has a carrier
	Virtual bool   // it shares no link with others: a prefix of one address, or a loopback or dummy device
}

const addressTimeout = 500 * time.Millisecond

// Addresses lists the addresses that a namespace has on its devices. A list that
// changed while it was read may lack some.
func (r *Reader) Addresses(ns trace.Netns) ([]Address, error) {
	target, err := r.dir.Open(ns)
	if err != nil {
		return nil, fmt.Errorf("list addresses of namespace %d: %w", ns, err)
	}
	defer target.Close()
	h, err := netlink.NewHandleAt(target, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("list addresses of namespace %d: %w", ns, err)
	}
	defer h.Close()
	if err := h.SetSocketTimeout(addressTimeout); err != nil {
		return nil, fmt.Errorf("list addresses of namespace %d: %w", ns, err)
	}
	links, err := h.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("list devices of namespace %d: %w", ns, err)
	}
	devices := make(map[int]netlink.Link, len(links))
	for _, l := range links {
		devices[l.Attrs().Index] = l
	}
	addrs, err := h.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("list addresses of namespace %d: %w", ns, err)
	}
	var out []Address
	for _, a := range addrs {
		ip, ok := netip.AddrFromSlice(a.IP)
		if !ok {
			continue
		}
		ones, _ := a.Mask.Size()
		have := Address{Device: trace.Device{Index: uint32(a.LinkIndex)}, Prefix: netip.PrefixFrom(ip.Unmap(), ones)}
		if l := devices[a.LinkIndex]; l != nil {
			have.Device.Name = l.Attrs().Name
			have.MAC = l.Attrs().HardwareAddr.String()
			have.Up = l.Attrs().RawFlags&unix.IFF_UP != 0 && l.Attrs().RawFlags&unix.IFF_LOWER_UP != 0
			have.Virtual = have.Prefix.IsSingleIP() || l.Attrs().Flags&net.FlagLoopback != 0 || l.Type() == "dummy"
		}
		out = append(out, have)
	}
	return out, nil
}

// Reachable lists up to limit namespaces that have a name, or another path by which they can be opened.
func (d *Directory) Reachable(limit int) []trace.Netns {
	d.mu.RLock()
	defer d.mu.RUnlock()
	all := make([]trace.Netns, 0, len(d.found.paths)+1)
	if d.host.Netns != 0 {
		all = append(all, d.host.Netns)
	}
	for ns := range d.found.paths {
		if ns != d.host.Netns {
			all = append(all, ns)
		}
	}
	for ns := range d.located {
		if ns != d.host.Netns && d.found.paths[ns] == "" {
			all = append(all, ns)
		}
	}
	slices.Sort(all)
	return all[:min(limit, len(all))]
}
