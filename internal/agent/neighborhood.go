package agent

import (
	"context"
	"net/netip"
	"slices"

	"github.com/replypath/replypath/internal/netstate"
	"github.com/replypath/replypath/pkg/trace"
)

// pathGateways returns the addresses of the namespaces that a request came
// through which are on a link of the case's host, nearest to the client first.
func (i *investigator) pathGateways(c *trace.Case) []trace.Gateway {
	own, err := i.reader.Addresses(c.Place.Netns)
	if err != nil {
		return nil
	}
	var gateways []trace.Gateway
	for n := range c.Path.Request {
		h := &c.Path.Request[n]
		if h.Place.Netns == c.Place.Netns {
			break
		}
		if h.In.Index == 0 || h.Out.Index == 0 {
			continue // the client itself
		}
		theirs, err := i.reader.Addresses(h.Place.Netns)
		if err != nil {
			continue
		}
		gateways = append(gateways, onLink(own, theirs, c.Event.Tuple.Dst.Addr().Is6())...)
	}
	return gateways
}

// maxOnwards bounds how many namespaces are asked for a way.
const maxOnwards = 16

// onwards returns the addresses on the host's links of those namespaces that have
// the packet's destination, or would send it on to others than this host.
func (i *investigator) onwards(ctx context.Context, c *trace.Case, q *trace.Question) []trace.Gateway {
	own, err := i.reader.Addresses(c.Place.Netns)
	if err != nil {
		return nil
	}
	linked, err := i.reader.Neighborhood(c.Place.Netns)
	if err != nil {
		return nil
	}
	own = slices.DeleteFunc(own, func(a netstate.Address) bool { return !a.Up })
	var owners, routers []trace.Gateway
	asked := 0
	for _, ns := range linked {
		theirs, err := i.reader.Addresses(ns)
		if err != nil {
			continue
		}
		near, back := onLink(own, theirs, q.Packet.Is6()), onLink(theirs, own, q.Packet.Is6())
		if len(near) == 0 || len(back) == 0 {
			continue
		}
		if asked++; asked > maxOnwards {
			break
		}
		s, err := i.read(ctx, trace.Question{Place: i.places.Place(ns), Packet: q.Packet, In: back[0].Device.Index, Arrived: back[0].Device.Index})
		switch {
		case err != nil || !s.In.Up:
		case s.DstLocal:
			owners = append(owners, near[0])
		case s.Forwarding && s.Onward.Found() && !leadsTo(own, s.Onward.Gateway):
			routers = append(routers, near[0])
		}
	}
	return append(owners, routers...)
}

// leadsTo reports whether a gateway is one of the addresses.
func leadsTo(addrs []netstate.Address, gateway netip.Addr) bool {
	return slices.ContainsFunc(addrs, func(a netstate.Address) bool { return a.Prefix.Addr() == gateway })
}

// onLink returns those of their addresses that lie within a prefix of ours, and by which device of ours.
func onLink(own, theirs []netstate.Address, six bool) []trace.Gateway {
	var gateways []trace.Gateway
	for _, t := range theirs {
		a := t.Prefix.Addr()
		if a.Is6() != six || a.IsLinkLocalUnicast() || a.IsLoopback() {
			continue
		}
		for _, o := range own {
			if !o.Prefix.IsSingleIP() && o.Prefix.Masked().Contains(a) && o.Prefix.Addr() != a {
				gateways = append(gateways, trace.Gateway{Addr: a, Device: o.Device})
				break
			}
		}
	}
	return gateways
}

// holder returns the namespace linked to one that has an address on a link, and the device.
func (i *investigator) holder(a netip.Addr, near trace.Netns) (trace.Place, trace.Device) {
	linked, err := i.reader.Neighborhood(near)
	if err != nil {
		return trace.Place{}, trace.Device{}
	}
	for _, ns := range linked {
		addrs, err := i.reader.Addresses(ns)
		if err != nil {
			continue
		}
		for _, have := range addrs {
			if have.Prefix.Addr() == a && have.Up && !have.Virtual {
				return i.places.Place(ns), have.Device
			}
		}
	}
	return trace.Place{}, trace.Device{}
}

// owners returns the namespaces that have an address, among those that are linked to one.
func (i *investigator) owners(a netip.Addr, near trace.Netns) []trace.Owner {
	linked, err := i.reader.Neighborhood(near)
	if err != nil {
		return nil
	}
	var owners []trace.Owner
	for _, ns := range linked {
		addrs, err := i.reader.Addresses(ns)
		if err != nil {
			continue
		}
		for _, have := range addrs {
			if have.Prefix.Addr() == a {
				owners = append(owners, trace.Owner{Place: i.places.Place(ns), Virtual: have.Virtual})
				break
			}
		}
	}
	return owners
}
