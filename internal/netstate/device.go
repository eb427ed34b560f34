package netstate

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"

	"github.com/replypath/replypath/pkg/trace"
)

// link reads a device, once.
func (r *reading) link(ctx context.Context, index uint32) (link, error) {
	if l, ok := r.links[index]; ok {
		return l, nil
	}
	var l link
	var bad error
	err := r.rtnl.exchange(ctx, linkGet(index), func(b []byte) bool {
		l, bad = parseLink(b)
		return true
	})
	if err = errors.Join(err, bad); err != nil {
		return link{}, fmt.Errorf("read device %d: %w", index, err)
	}
	r.links[index] = l
	return l, nil
}

// name returns the device's name, "" when it is not known.
func (r *reading) name(ctx context.Context, index uint32) string {
	if index == 0 {
		return ""
	}
	l, err := r.link(ctx, index)
	if err != nil {
		return ""
	}
	return l.name
}

// maxNesting bounds the chain of master devices that is followed; the kernel allows 8 (MAX_NEST_DEV).
const maxNesting = 8

// layer3 returns the device whose IP settings decide about a packet that came
// in by index: skb_iif names the port of a bridge, bond or team, but IP sees
// the master. The ports of a VRF are IP devices themselves.
func (r *reading) layer3(ctx context.Context, index uint32) uint32 {
	for range maxNesting {
		l, err := r.link(ctx, index)
		if err != nil || l.master == 0 {
			return index
		}
		master, err := r.link(ctx, l.master)
		if err != nil || master.kind == "vrf" {
			return index
		}
		index = l.master
	}
	return index
}

// vrfOf returns the VRF device that index belongs to, or is; the zero link when there is none.
func (r *reading) vrfOf(ctx context.Context, index uint32) (link, bool) {
	l, err := r.link(ctx, index)
	if err != nil {
		return link{}, false
	}
	if l.kind != "vrf" && l.master != 0 {
		if l, err = r.link(ctx, l.master); err != nil {
			return link{}, false
		}
	}
	if l.kind != "vrf" {
		return link{}, false
	}
	return l, true
}

// device reads what is told of a packet's device.
func (r *reading) device(ctx context.Context, index uint32) (trace.Interface, error) {
	if index == 0 {
		return trace.Interface{}, nil
	}
	found := trace.Interface{Device: trace.Device{Index: index}}
	l, err := r.link(ctx, index)
	if err != nil {
		return found, err
	}
	found.Name, found.Kind, found.Up = l.name, l.kind, l.up
	if r.family != unix.AF_INET {
		return found, nil
	}
	all, err := r.netconf(ctx, unix.AF_INET, allDevices)
	if err != nil {
		return found, err
	}
	own, err := r.netconf(ctx, unix.AF_INET, index)
	if err != nil {
		return found, err
	}
	found.RPFilterAll = all.rpFilter
	found.RPFilter = max(all.rpFilter, own.rpFilter) // IN_DEV_MAXCONF, include/linux/inetdevice.h
	found.ARPIgnore = arpIgnore(l.name)
	return found, nil
}

// arpIgnore reads a device's effective arp_ignore, which netconf does not tell.
func arpIgnore(device string) int {
	ignore := 0
	for _, name := range []string{"all", device} {
		if value, err := readSysctl("net/ipv4/conf/" + name + "/arp_ignore"); err == nil {
			ignore = max(ignore, value)
		}
	}
	return ignore
}

// netconf reads IP settings, once. A device without IP has none: all zeroes.
func (r *reading) netconf(ctx context.Context, family uint8, index uint32) (netconf, error) {
	key := netconfKey{family, index}
	if c, ok := r.netconfs[key]; ok {
		return c, nil
	}
	var c netconf
	var bad error
	err := r.rtnl.exchange(ctx, netconfGet(family, index), func(b []byte) bool {
		c, bad = parseNetconf(b)
		return true
	})
	if errors.Is(err, unix.EINVAL) && index != allDevices {
		err = nil
	}
	if err = errors.Join(err, bad); err != nil {
		return netconf{}, fmt.Errorf("read IP settings of device %d: %w", int32(index), err)
	}
	r.netconfs[key] = c
	return c, nil
}

// forwarding reports whether packets of the family that come in by index are
// forwarded, and what conf/all says: ip_route_input_slow asks the device,
// ip6_forward asks conf/all or, since 6.17, the device's force_forwarding.
func (r *reading) forwarding(ctx context.Context, index uint32) (here, all bool, err error) {
	c, err := r.netconf(ctx, r.family, allDevices)
	if err != nil || index == 0 {
		return c.forwarding, c.forwarding, err
	}
	all = c.forwarding
	if r.family == unix.AF_INET {
		c, err = r.netconf(ctx, unix.AF_INET, index)
		return c.forwarding, all, err
	}
	if all {
		return true, true, nil
	}
	forced, err := readSysctl("net/ipv6/conf/" + r.name(ctx, index) + "/force_forwarding") // netconf does not tell it
	if errors.Is(err, fs.ErrNotExist) {
		return false, all, nil
	}
	return forced != 0, all, err
}

type netconfKey struct {
	family uint8
	index  uint32
}
