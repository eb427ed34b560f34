package netstate

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/replypath/replypath/pkg/trace"
)

// readTunnels lists the tunnel devices of the namespace that the thread is in.
func (r *reading) readTunnels(_ context.Context, state *trace.HostState) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	state.Tunnels, err = tunnelsOf(h)
	return err
}

// Tunnels lists the tunnel devices of a namespace.
func (r *Reader) Tunnels(ns trace.Netns) ([]trace.Tunnel, error) {
	target, err := r.dir.Open(ns)
	if err != nil {
		return nil, fmt.Errorf("list tunnels of namespace %d: %w", ns, err)
	}
	defer target.Close()
	h, err := netlink.NewHandleAt(target, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("list tunnels of namespace %d: %w", ns, err)
	}
	defer h.Close()
	return tunnelsOf(h)
}

// TunnelTo returns a namespace's tunnel of that device, with the remote that it has
// for a MAC address, where its table of addresses says so and not the tunnel itself.
func (r *Reader) TunnelTo(ns trace.Netns, device uint32, mac string) (t trace.Tunnel, err error) {
	target, err := r.dir.Open(ns)
	if err != nil {
		return t, fmt.Errorf("read tunnel of namespace %d: %w", ns, err)
	}
	defer target.Close()
	h, err := netlink.NewHandleAt(target, unix.NETLINK_ROUTE)
	if err != nil {
		return t, fmt.Errorf("read tunnel of namespace %d: %w", ns, err)
	}
	defer h.Close()
	if err := h.SetSocketTimeout(addressTimeout); err != nil {
		return t, err
	}
	l, err := h.LinkByIndex(int(device))
	if err != nil {
		return t, fmt.Errorf("read device %d of namespace %d: %w", device, ns, err)
	}
	t, ok := tunnelOf(l)
	if !ok || t.Kind != "vxlan" || mac == "" {
		return t, nil
	}
	entries, err := h.NeighList(int(device), unix.AF_BRIDGE)
	if err != nil {
		return t, fmt.Errorf("read addresses behind device %d of namespace %d: %w", device, ns, err)
	}
	for i := range entries {
		if e := &entries[i]; e.HardwareAddr.String() == mac && address(e.IP).IsValid() {
			t.Remote = address(e.IP)
		}
	}
	return t, nil
}

// maxTunnels bounds what is kept of one namespace.
const maxTunnels = 256

func tunnelsOf(h *netlink.Handle) ([]trace.Tunnel, error) {
	if err := h.SetSocketTimeout(addressTimeout); err != nil {
		return nil, err
	}
	links, err := h.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	var found []trace.Tunnel
	for _, l := range links {
		if t, ok := tunnelOf(l); ok && len(found) < maxTunnels {
			found = append(found, t)
		}
	}
	return found, nil
}

// tunnelOf reads what a device says of its tunnel; false for other devices.
func tunnelOf(l netlink.Link) (trace.Tunnel, bool) {
	a := l.Attrs()
	t := trace.Tunnel{Device: trace.Device{Index: uint32(a.Index), Name: a.Name}, Kind: l.Type(), Up: a.RawFlags&unix.IFF_UP != 0}
	between := func(local, remote net.IP) { t.Local, t.Remote = address(local), address(remote) }
	switch d := l.(type) {
	case *netlink.Vxlan:
		t.ID, t.Port, t.External = uint32(d.VxlanId), uint16(d.Port), d.FlowBased
		between(d.SrcAddr, d.Group)
	case *netlink.Geneve:
		t.ID, t.Port, t.External = d.ID, d.Dport, d.FlowBased
		between(nil, d.Remote)
	case *netlink.Iptun:
		t.External = d.FlowBased
		between(d.Local, d.Remote)
	case *netlink.Sittun:
		between(d.Local, d.Remote)
	case *netlink.Ip6tnl:
		t.External = d.FlowBased
		between(d.Local, d.Remote)
	case *netlink.Gretun:
		t.ID, t.External = d.IKey, d.FlowBased
		between(d.Local, d.Remote)
	case *netlink.Gretap:
		t.ID, t.External = d.IKey, d.FlowBased
		between(d.Local, d.Remote)
	default:
		return t, false
	}
	ends := t.Local.IsValid() || t.Remote.IsValid()
	udp := t.Port != 0
	return t, udp || ends || t.External || t.ID != 0 // else it is what the module makes for itself: tunl0, gre0, …
}

// address is a.Unmap() of a net.IP; invalid for none and for the unspecified one.
func address(ip net.IP) netip.Addr {
	a, ok := netip.AddrFromSlice(ip)
	if !ok || a.IsUnspecified() {
		return netip.Addr{}
	}
	return a.Unmap()
}
