package lab

import (
	"context"
	"fmt"
	"net/netip"
)

// Change is one thing done to a host of a network that stands: a fault, or a
// harmless setting.
type Change struct {
	Host  string
	Text  string // as an operator would write it down, mostly the command
	apply func(*Network) error
	needs string // program that it takes; "": none
}

// on makes a Change of something done to one host.
func on(name, text string, do func(*host) error) Change {
	return Change{Host: name, Text: text, apply: func(n *Network) error {
		h, ok := n.hosts[name]
		if !ok {
			return fmt.Errorf("no host %s", name)
		}
		return do(h)
	}}
}

// ipCommand is how `ip` is called for a family.
func ipCommand(is6 bool) string {
	if is6 {
		return "ip -6 "
	}
	return "ip "
}

// addRoute adds a route.
func addRoute(name string, r Route) Change {
	return on(name, ipCommand(r.To.Addr().Is6())+"route add "+r.String(), func(h *host) error { return h.addRoute(r) })
}

// deleteRoute deletes a route.
func deleteRoute(name string, r Route) Change {
	return on(name, ipCommand(r.To.Addr().Is6())+"route del "+r.String(), func(h *host) error { return h.deleteRoute(r) })
}

// replaceRoute puts one route in the place of another.
func replaceRoute(name string, old, r Route) Change {
	return on(name, ipCommand(r.To.Addr().Is6())+"route replace "+r.String(), func(h *host) error {
		if err := h.deleteRoute(old); err != nil {
			return err
		}
		return h.addRoute(r)
	})
}

// addRule adds a routing policy rule.
func addRule(name string, f Family, r Rule) Change {
	return on(name, ipCommand(f == IPv6)+"rule add "+r.String(), func(h *host) error { return h.addRule(r) })
}

// deleteAddress takes an address away.
func deleteAddress(name string, a Address) Change {
	text := fmt.Sprintf("ip addr del %s dev %s", a.Prefix, a.Device)
	return on(name, text, func(h *host) error { return h.deleteAddress(a) })
}

// sysctl changes a kernel setting.
func sysctl(at, name, value string) Change {
	return on(at, "sysctl -w "+name+"="+value, func(h *host) error { return h.setSysctl(Sysctl{name, value}) })
}

// setMTU changes the largest packet that a device sends.
func setMTU(name, device string, mtu int) Change {
	return on(name, fmt.Sprintf("ip link set %s mtu %d", device, mtu), func(h *host) error { return h.setMTU(device, mtu) })
}

// setDown takes a device down.
func setDown(name, device string) Change {
	return on(name, "ip link set "+device+" down", func(h *host) error { return h.setDown(device) })
}

// filters adds nftables chains; text says what they do.
func filters(name, text string, chains ...Chain) Change {
	return on(name, "nft: "+text, func(h *host) error { return h.addChains(chains) })
}

// stopService ends the services of a host.
func stopService(name string) Change {
	return Change{Host: name, Text: "stop the server", apply: func(n *Network) error { return n.stopService(name) }}
}

// moveService lets a host's service listen on one address only.
func moveService(name string, to netip.Addr, port uint16) Change {
	s := Service{Host: name, Address: netip.AddrPortFrom(to, port)}
	return Change{Host: name, Text: "let the server listen on " + s.Address.String() + " only", apply: func(n *Network) error {
		if err := n.stopService(name); err != nil {
			return err
		}
		return n.startService(context.Background(), s)
	}}
}
