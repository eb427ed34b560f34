package netstate

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/replypath/replypath/pkg/trace"
)

// Bounds of what one answer looks through and tells.
const (
	maxNeighbors     = 16_384
	maxGatewayRoutes = 2_000 // default routes come first in a dump, so a full table need not be read
	maxGateways      = 16
	maxListeners     = 64
)

// neighbor reads the entry of addr on a device; index 0: the first device that
// has one. An entry that does not exist has no State.
func (r *reading) neighbor(ctx context.Context, addr netip.Addr, index uint32) (trace.Neighbor, error) {
	answer := trace.Neighbor{Addr: addr}
	if index == 0 {
		found, err := r.searchNeighbor(ctx, addr)
		return r.tell(ctx, answer, found), err
	}
	answer.Device = trace.Device{Index: index, Name: r.name(ctx, index)}
	var found neighbor
	var bad error
	err := r.rtnl.exchange(ctx, neighborGet(addr, index), func(b []byte) bool {
		found, bad = parseNeighbor(b)
		return true
	})
	if errors.Is(err, unix.ENOENT) {
		return answer, nil
	}
	if err = errors.Join(err, bad); err != nil {
		return answer, fmt.Errorf("read neighbour %s: %w", addr, err)
	}
	return r.tell(ctx, answer, found), nil
}

func (r *reading) tell(ctx context.Context, answer trace.Neighbor, found neighbor) trace.Neighbor {
	if !found.addr.IsValid() {
		return answer
	}
	answer.State = stateName(found.state)
	answer.MAC = found.mac.String()
	answer.Device = trace.Device{Index: found.device, Name: r.name(ctx, found.device)}
	return answer
}

func (r *reading) searchNeighbor(ctx context.Context, addr netip.Addr) (neighbor, error) {
	var found neighbor
	err := r.neighbors(ctx, familyOf(addr), 0, func(n neighbor) {
		if n.addr == addr && (!found.addr.IsValid() || n.device < found.device) {
			found = n
		}
	})
	return found, err
}

// neighbors calls each for the entries of a family on a device, or on all (index 0).
func (r *reading) neighbors(ctx context.Context, family uint8, index uint32, each func(neighbor)) error {
	left := maxNeighbors
	var stop error
	err := r.rtnl.exchange(ctx, neighborDump(family, index), func(b []byte) bool {
		n, err := parseNeighbor(b)
		if err == nil && left == 0 {
			err = fmt.Errorf("more than %d entries", maxNeighbors)
		}
		if err != nil {
			stop = err
			return false
		}
		left--
		each(n)
		return true
	})
	if errors.Is(err, nl.ErrDumpInterrupted) {
		err = nil
	}
	if err = errors.Join(err, stop); err != nil {
		return fmt.Errorf("read neighbours: %w", err)
	}
	return nil
}

// previousHop finds the neighbour on a device that has the MAC.
func (r *reading) previousHop(ctx context.Context, mac [6]byte, index uint32) (netip.Addr, error) {
	if mac == [6]byte{} || index == 0 {
		return netip.Addr{}, nil
	}
	var best neighbor
	err := r.neighbors(ctx, r.family, index, func(n neighbor) {
		if !n.resolved() || !slices.Equal(n.mac, mac[:]) || n.device != index {
			return
		}
		if !best.addr.IsValid() || betterSource(n, best) {
			best = n
		}
	})
	return best.addr, err
}

// gatewayRoute is a gateway with what orders it among others.
type gatewayRoute struct {
	addr   netip.Addr
	device uint32
	main   bool
	bits   int
	metric uint32
}

// compareGateways puts the main table first, then the widest prefix (a default
// route's gateway reaches anything), then the lowest metric.
func compareGateways(a, b gatewayRoute) int {
	if a.main != b.main {
		if a.main {
			return -1
		}
		return 1
	}
	return cmp.Or(cmp.Compare(a.bits, b.bits), cmp.Compare(a.metric, b.metric), cmp.Compare(a.device, b.device), a.addr.Compare(b.addr))
}

// gateways lists the next hops that this host already uses, best first, and
// for IPv6 then the neighbours that announced themselves as routers.
func (r *reading) gateways(ctx context.Context) ([]trace.Gateway, error) {
	var found []gatewayRoute
	errMain := r.gatewayRoutes(ctx, unix.RT_TABLE_MAIN, &found)
	errAll := r.gatewayRoutes(ctx, 0, &found)
	slices.SortStableFunc(found, compareGateways)
	var errRouters error
	if r.family == unix.AF_INET6 {
		errRouters = r.neighbors(ctx, unix.AF_INET6, 0, func(n neighbor) {
			if n.router && n.resolved() {
				found = append(found, gatewayRoute{addr: n.addr, device: n.device})
			}
		})
	}
	var unique []trace.Gateway
	seen := make(map[trace.Gateway]bool)
	for _, g := range found {
		key := trace.Gateway{Addr: g.addr, Device: trace.Device{Index: g.device}}
		if seen[key] || len(unique) == maxGateways {
			continue
		}
		seen[key] = true
		key.Device.Name = r.name(ctx, g.device)
		unique = append(unique, key)
	}
	return unique, errors.Join(errMain, errAll, errRouters)
}

// gatewayRoutes collects the gateways of one table, or of all but local (table 0).
func (r *reading) gatewayRoutes(ctx context.Context, table uint32, found *[]gatewayRoute) error {
	left := maxGatewayRoutes
	var bad error
	err := r.rtnl.exchange(ctx, routeDump(r.family, table, unix.RTN_UNICAST), func(b []byte) bool {
		var route route
		if route, bad = parseRoute(b); bad != nil {
			return false
		}
		if table == 0 && route.table == unix.RT_TABLE_MAIN {
			return true
		}
		for _, hop := range route.hops {
			if hop.dead || !hop.gateway.IsValid() || familyOf(hop.gateway) != r.family {
				continue
			}
			*found = append(*found, gatewayRoute{
				addr: hop.gateway, device: hop.device, main: table == unix.RT_TABLE_MAIN,
				bits: route.prefix.Bits(), metric: route.metric,
			})
		}
		left--
		return left > 0
	})
	if errors.Is(err, nl.ErrDumpInterrupted) || errors.Is(err, unix.ENOENT) {
		err = nil
	}
	if err = errors.Join(err, bad); err != nil {
		return fmt.Errorf("read gateways: %w", err)
	}
	return nil
}

// listeners reads the sockets that listen on a port, in both families: a
// server that listens on the wrong family only is worth telling. Of UDP those
// are the sockets that are bound to it and connected to nobody.
func (r *reading) listeners(ctx context.Context, protocol trace.Protocol, dst netip.AddrPort, from arrival) ([]trace.Listener, error) {
	diag, err := dialSocket(unix.NETLINK_SOCK_DIAG, false)
	if err != nil {
		return nil, err
	}
	defer diag.Close()
	var found []trace.Listener
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		var bad error
		err := diag.exchange(ctx, listenerDump(protocol, family, dst.Port()), func(b []byte) bool {
			var l listener
			if l, bad = parseListener(b); bad != nil {
				return false
			}
			if l.addr.Port() != dst.Port() {
				return true
			}
			found = append(found, trace.Listener{
				Addr: l.addr, Matches: l.takes(dst, from),
				Backlog: int(l.backlog), Queue: int(l.queue), V6Only: l.v6Only,
			})
			return len(found) < maxListeners
		})
		if errors.Is(err, nl.ErrDumpInterrupted) {
			err = nil
		}
		if err = errors.Join(err, bad); err != nil {
			return found, fmt.Errorf("read listening sockets: %w", err)
		}
	}
	return found, nil
}
