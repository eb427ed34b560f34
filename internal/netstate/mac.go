package netstate

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/replypath/replypath/pkg/trace"
)

// MACs lists the MAC addresses of a namespace's devices, those without an IP
// address included: a bridge takes what is sent to the MAC of one of its ports.
func (r *Reader) MACs(ns trace.Netns) (map[string]trace.Device, error) {
	target, err := r.dir.Open(ns)
	if err != nil {
		return nil, fmt.Errorf("list MACs of namespace %d: %w", ns, err)
	}
	defer target.Close()
	h, err := netlink.NewHandleAt(target, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("list MACs of namespace %d: %w", ns, err)
	}
	defer h.Close()
	if err := h.SetSocketTimeout(addressTimeout); err != nil {
		return nil, fmt.Errorf("list MACs of namespace %d: %w", ns, err)
	}
	links, err := h.LinkList()
	if err != nil {
		if errors.Is(err, netlink.ErrDumpInterrupted) {
			err = errors.New("they changed meanwhile")
		}
		return nil, fmt.Errorf("list MACs of namespace %d: %w", ns, err)
	}
	macs := make(map[string]trace.Device, len(links))
	for _, l := range links {
		if mac := l.Attrs().HardwareAddr.String(); mac != "" {
			macs[mac] = trace.Device{Index: uint32(l.Attrs().Index), Name: l.Attrs().Name}
		}
	}
	return macs, nil
}
