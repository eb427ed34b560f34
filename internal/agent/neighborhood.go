package agent

import (
	"net/netip"

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
