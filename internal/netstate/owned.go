package netstate

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/replypath/replypath/pkg/trace"
)

// readOwned tells whether the address that this host owns of the exchange is a
// service's, which many hosts may have at once (trace.Owner.Virtual). One that no device
// has, and a local route delivers, is.
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
		ip, ok := netip.AddrFromSlice(a.IP)
		if !ok || ip.Unmap() != owned {
			continue
		}
		ones, bits := a.Mask.Size()
		device, err := r.device(ctx, uint32(a.LinkIndex))
		if err != nil {
			return err
		}
		state.Virtual = ones == bits || device.Name == "lo" || device.Kind == "dummy"
		return nil
	}
	return nil
}
