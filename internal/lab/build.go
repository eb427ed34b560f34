package lab

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// firstIndex starts the ifindexes of the near ends of cables. Were both ends to
// have the same index, each in its namespace, the kernel would take a second to
// notice that the cable is up (linkwatch_urgent_event in net/core/link_watch.c).
const firstIndex = 11

// connect makes bridges and cables and brings them up.
func (n *Network) connect(ctx context.Context) error {
	for _, h := range n.order {
		if h.spec.Bridge == "" {
			continue
		}
		if err := h.addBridge(h.spec.Bridge); err != nil {
			return err
		}
	}
	for i, l := range n.lab.Topology.Links {
		if err := ctx.Err(); err != nil {
			return err
		}
		a, b := n.hosts[l.A.Host], n.hosts[l.B.Host]
		if a == nil || b == nil {
			return fmt.Errorf("connect %s to %s: no such host", l.A.Host, l.B.Host)
		}
		if err := a.addVeth(l.A.Device, firstIndex+i, b, l.B.Device); err != nil {
			return err
		}
		if err := a.addPort(l.A.Device); err != nil {
			return err
		}
		if err := b.addPort(l.B.Device); err != nil {
			return err
		}
	}
	return nil
}

// configure gives every host its addresses, tunnels, routes, forwarding and filters.
func (n *Network) configure(ctx context.Context) error {
	for _, h := range n.order {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := h.configure(); err != nil {
			return fmt.Errorf("configure %s: %w", h.netns, err)
		}
	}
	return nil
}

// configure applies the host's own part of the topology.
func (h *host) configure() error {
	for _, device := range h.spec.Checksums {
		if err := h.sumInSoftware(device); err != nil {
			return err
		}
	}
	for _, t := range h.spec.Tunnels {
		if err := h.addTunnel(t); err != nil {
			return err
		}
	}
	for _, a := range h.spec.Addresses {
		if err := h.addAddress(a); err != nil {
			return err
		}
	}
	for _, r := range h.spec.Routes {
		if err := h.addRoute(r); err != nil {
			return err
		}
	}
	if h.spec.Forward {
		if err := h.setSysctl(Sysctl{forwarding(h.family), "1"}); err != nil {
			return err
		}
	}
	return h.addChains(h.spec.Chains)
}

// settle waits until every device is up and, for IPv6, has its link-local
// address: the kernel brings both about a moment after the commands.
func (n *Network) settle(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	for _, h := range n.order {
		for {
			ready, err := h.settled()
			if err != nil {
				return err
			}
			if ready {
				break
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("wait for devices of %s: %w", h.netns, ctx.Err())
			case <-time.After(2 * time.Millisecond):
			}
		}
	}
	return nil
}

// settled reports whether all devices are ready to carry packets.
func (h *host) settled() (bool, error) {
	links, err := h.nl.LinkList()
	if errors.Is(err, netlink.ErrDumpInterrupted) {
		return false, nil // it changes at this moment: look again
	}
	if err != nil {
		return false, fmt.Errorf("list devices of %s: %w", h.netns, err)
	}
	for _, l := range links {
		attrs := l.Attrs()
		if attrs.Name == "lo" && h.family == IPv6 {
			// An address of lo is not local either before the kernel's worker has looked at it.
			if ready, _, err := h.addressesReady(l); err != nil || !ready {
				return false, err
			}
		}
		// A bridge itself says that it is up a second late, long after its ports carry packets.
		if attrs.Name == "lo" || l.Type() == "bridge" || attrs.Flags&unix.IFF_UP == 0 {
			continue
		}
		if attrs.OperState != netlink.OperUp && attrs.OperState != netlink.OperUnknown {
			return false, nil
		}
		if h.family != IPv6 || h.spec.Bridge != "" {
			continue
		}
		ready, linkLocal, err := h.addressesReady(l)
		if err != nil || !ready || !linkLocal {
			return false, err
		}
	}
	return true, nil
}

// addressesReady reports whether no IPv6 address of a device is tentative, and
// whether one is link-local.
func (h *host) addressesReady(l netlink.Link) (ready, linkLocal bool, err error) {
	addrs, err := h.nl.AddrList(l, netlink.FAMILY_V6)
	if errors.Is(err, netlink.ErrDumpInterrupted) {
		return false, false, nil // it changes at this moment: look again
	}
	if err != nil {
		return false, false, fmt.Errorf("list addresses of %s: %w", l.Attrs().Name, err)
	}
	for _, a := range addrs {
		if a.Flags&unix.IFA_F_TENTATIVE != 0 {
			return false, false, nil
		}
		linkLocal = linkLocal || a.IP.IsLinkLocalUnicast()
	}
	return true, linkLocal, nil
}
