package agent

import (
	"context"
	"net/netip"
	"slices"

	"github.com/replypath/replypath/pkg/trace"
	"github.com/replypath/replypath/pkg/trace/diagnose"
)

// farTunnels returns the tunnels of the namespaces that are linked to one.
func (i *investigator) farTunnels(near trace.Netns) []trace.FarTunnel {
	linked, err := i.reader.Neighborhood(near)
	if err != nil {
		return nil
	}
	var found []trace.FarTunnel
	for _, ns := range linked {
		tunnels, err := i.reader.Tunnels(ns)
		if err != nil || len(tunnels) == 0 {
			continue
		}
		have, err := i.reader.Addresses(ns)
		if err != nil {
			continue
		}
		addrs := make([]netip.Addr, len(have))
		for n := range have {
			addrs[n] = have[n].Prefix.Addr()
		}
		for _, t := range tunnels {
			found = append(found, trace.FarTunnel{Place: i.places.Place(ns), Tunnel: t, Addrs: addrs})
		}
	}
	return found
}

// underlay reads the tunnel that the case's packet left by, and the way of what it makes of it.
func (i *investigator) underlay(ctx context.Context, c *trace.Case, s *trace.HostState) (u trace.Underlay) {
	t, err := i.reader.TunnelTo(c.Place.Netns, diagnose.TunnelOut(c), s.NextHop.MAC)
	if err != nil || !t.Remote.IsValid() || t.Remote.IsMulticast() || t.External {
		return u
	}
	q := trace.Question{Place: c.Place, Packet: diagnose.Outer(&t)}
	found, err := i.read(ctx, q)
	if err != nil || found.DstLocal {
		return u
	}
	if !found.Onward.Found() {
		inside := func(g trace.Gateway) bool { return g.Device.Index == t.Device.Index }
		s.Onwards = slices.DeleteFunc(i.onwards(ctx, c, &q), inside)
	}
	return trace.Underlay{Tunnel: t, Way: found.Onward}
}
