package lab

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/replypath/replypath/pkg/trace"
)

// tunnelLabs are tunnels whose ends do not agree.
func tunnelLabs(f Family) []Lab {
	const id = "tunnel-mismatch"
	near, far := servers.addr(f, 10), servers.addr(f, 20)
	lb := Tunnel{Device: "vx0", VNI: 42, Local: near, Remote: far}
	backend := Tunnel{Device: "vx0", VNI: 42, Local: far, Remote: near}
	other := func(t Tunnel, change func(*Tunnel)) Tunnel { change(&t); return t }
	newVNI := func(t *Tunnel) { t.VNI = 43 }
	newPort := func(t *Tunnel) { t.Port = 8472 }
	known := addNeighbor("lb", "vx0", inner.addr(f, 2))
	return complete([]Lab{
		{Name: "healthy-port", Topology: dsrTunnel(f), Title: "a tunnel with a number and a port of its own",
			Doc: "Both ends have VNI 43 and UDP port 8472.",
			Setting: []Change{
				replaceTunnel("lb", f, 1, other(other(lb, newVNI), newPort)),
				replaceTunnel("backend", f, 2, other(other(backend, newVNI), newPort)),
				addRoute("lb", Route{To: single(vip(f)), Via: inner.addr(f, 2)}), // went with the old device
			}},
		{Name: "vni", Topology: dsrTunnel(f), Finding: id, Direction: trace.Request, Where: "backend", Outcome: Unreachable,
			Title:  "the backend's tunnel has another VNI",
			Doc:    "What comes through the tunnel is dropped, ARP and neighbour discovery first, so the load balancer never learns where to send the request.",
			Faults: []Change{replaceTunnel("backend", f, 2, other(backend, newVNI))}},
		{Name: "vni-known", Topology: dsrTunnel(f), Finding: id, Direction: trace.Request, Where: "backend",
			Title:   "the backend's tunnel has another VNI, and its MAC address is known",
			Doc:     "Overlay networks fill in neighbours themselves: the request itself is sent, and dropped with the tunnel's packet.",
			Setting: []Change{known},
			Faults:  []Change{replaceTunnel("backend", f, 2, other(backend, newVNI))}},
		{Name: "port", Topology: dsrTunnel(f), Finding: id, Direction: trace.Request, Where: "backend",
			Title:   "the backend's tunnel listens on another UDP port",
			Doc:     "The tunnel's packets find no socket.",
			Setting: []Change{known},
			Faults:  []Change{replaceTunnel("backend", f, 2, other(backend, newPort))}},
		{Name: "remote", Topology: dsrTunnel(f), Finding: id, Direction: trace.Request, Where: "lb",
			Title: "the load balancer's tunnel leads to a host that is not its other end",
			Doc:   "It leads to the router, which has no tunnel at all.",
			Faults: []Change{
				replaceTunnel("lb", f, 1, other(lb, func(t *Tunnel) { t.Remote = servers.addr(f, 1) })),
				addRoute("lb", Route{To: single(vip(f)), Via: inner.addr(f, 2)}), known,
			}},
	})
}

// replaceTunnel makes a tunnel device anew, with address number i inside.
func replaceTunnel(name string, f Family, i byte, t Tunnel) Change {
	text := fmt.Sprintf("ip link add %s type vxlan id %d local %s remote %s, in place of the old one", t.Device, t.VNI, t.Local, t.Remote)
	return on(name, text, func(h *host) error {
		l, err := h.link(t.Device)
		if err != nil {
			return err
		}
		if err := h.nl.LinkDel(l); err != nil {
			return fmt.Errorf("delete %s: %w", t.Device, err)
		}
		if err := h.addTunnel(t); err != nil {
			return err
		}
		return h.addAddress(inner.on(f, t.Device, i))
	})
}

// labMAC is the address of a neighbour that is made known.
var labMAC = net.HardwareAddr{2, 0, 0, 0, 0, 2}

// addNeighbor makes a neighbour known.
func addNeighbor(name, device string, a netip.Addr) Change {
	return on(name, fmt.Sprintf("ip neigh add %s lladdr %s dev %s", a, labMAC, device), func(h *host) error {
		l, err := h.link(device)
		if err != nil {
			return err
		}
		return wrap("add neighbour", h.nl.NeighSet(&netlink.Neigh{
			LinkIndex: l.Attrs().Index, IP: a.AsSlice(), HardwareAddr: labMAC, State: unix.NUD_PERMANENT, Family: netlinkFamily(a),
		}))
	})
}
