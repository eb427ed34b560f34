package agent

import (
	"net/netip"

	"github.com/replypath/replypath/pkg/trace"
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
