package netstate

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/replypath/replypath/pkg/trace"
)

// readOwned tells whether the address that this host owns of the exchange is a
// service's, which many hosts may have at once. One that no device has, and a local
// route delivers, is.
func (r *reading) readOwned(ctx context.Context, state *trace.HostState) error {
	var owned netip.Addr
	switch {
	case state.DstLocal:
		owned = r.q.Packet.Dst.Addr()
	case state.SrcLocal:
		owned = r.q.Packet.Src.Addr()
	default:
		return nil
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	if err := h.SetSocketTimeout(addressTimeout); err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	addrs, err := h.AddrList(nil, int(r.family))
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return fmt.Errorf("list addresses: %w", err)
	}
	state.Virtual = true
	for _, a := range addrs {
		if ip, ok := netip.AddrFromSlice(a.IP); ok && ip.Unmap() == owned {
			state.Virtual, err = r.isService(ctx, a, addrs)
			return err
		}
	}
	return nil
}

// isService reports whether an address is on a device that leads nowhere or out
// of a tunnel, or is by itself beside another one of the device. Some networks give hosts
// and pods nothing but an address by itself: that one is their own.
func (r *reading) isService(ctx context.Context, a netlink.Addr, all []netlink.Addr) (bool, error) {
	device, err := r.device(ctx, uint32(a.LinkIndex))
	if err != nil {
		return false, err
	}
	if device.Name == "lo" || device.Kind == "dummy" || trace.IsTunnel(device.Kind) {
		return true, nil
	}
	ones, bits := a.Mask.Size()
	beside := func(o netlink.Addr) bool {
		return o.LinkIndex == a.LinkIndex && !o.IP.Equal(a.IP) && !o.IP.IsLinkLocalUnicast()
	}
	return ones == bits && slices.ContainsFunc(all, beside), nil
}
