package lab

import (
	"net/netip"

	"github.com/google/nftables"
)

// dsr is direct server return on one LAN: the router sends the VIP to the load
// balancer, that hands the packet to the backend, which owns the VIP on lo and
// answers through the router.
//
//	client eth0 -- wan0 router lan0 -- switch -- eth0 lb
//	                                          -- eth0 backend (VIP on lo)
func dsr(f Family) Topology {
	router, lb, backend := servers.addr(f, 1), servers.addr(f, 10), servers.addr(f, 20)
	return Topology{
		Name: "dsr" + f.suffix(), Family: f,
		Hosts: []Host{
			clientHost(f),
			{
				Name: "router", Forward: true,
				Addresses: []Address{clients.on(f, "wan0", 1), servers.on(f, "lan0", 1)},
				Routes:    []Route{{To: single(vip(f)), Via: lb}},
			},
			{Name: "switch", Bridge: "br0"},
			{
				Name: "lb", Forward: true, Sysctls: quiet,
				Addresses: []Address{servers.on(f, "eth0", 10)},
				Routes:    []Route{gateway(f, router), {To: single(vip(f)), Via: backend}},
			},
			{
				Name: "backend", Sysctls: hideVIP,
				Addresses: []Address{servers.on(f, "eth0", 20), vipOnLo(f)},
				Routes:    []Route{gateway(f, router)},
			},
		},
		Links: []Link{
			{Port{"client", "eth0"}, Port{"router", "wan0"}},
			{Port{"router", "lan0"}, Port{"switch", "router"}},
			{Port{"lb", "eth0"}, Port{"switch", "lb"}},
			{Port{"backend", "eth0"}, Port{"switch", "backend"}},
		},
		Services: []Service{{Host: "backend", Address: anywhere(f, 80)}},
		Client:   toVIP(f),
	}
}

// dsrTunnel is dsr with a VXLAN between load balancer and backend, as service
// networks build it: the request comes in by vx0, the reply leaves by eth0.
func dsrTunnel(f Family) Topology {
	t := dsr(f)
	t.Name = "dsr-tunnel" + f.suffix()
	lb, backend := &t.Hosts[3], &t.Hosts[4]
	near, far := servers.addr(f, 10), servers.addr(f, 20)
	lb.Tunnels = []Tunnel{{Device: "vx0", VNI: 42, Local: near, Remote: far}}
	lb.Addresses = append(lb.Addresses, inner.on(f, "vx0", 1))
	lb.Routes = []Route{gateway(f, servers.addr(f, 1)), {To: single(vip(f)), Via: inner.addr(f, 2)}}
	backend.Tunnels = []Tunnel{{Device: "vx0", VNI: 42, Local: far, Remote: near}}
	backend.Addresses = append(backend.Addresses, inner.on(f, "vx0", 2))
	return t
}

// dsrReturn is direct server return with a way back of its own: the backend has
// a second cable, straight to the router.
//
//	client eth0 -- wan0 router lan0 -- eth0 lb eth1 -- eth0 backend (VIP on lo)
//	                    router ret0 ------------------ eth1 backend
func dsrReturn(f Family) Topology {
	return Topology{
		Name: "dsr-return" + f.suffix(), Family: f,
		Hosts: []Host{
			clientHost(f),
			{
				Name: "router", Forward: true,
				Addresses: []Address{clients.on(f, "wan0", 1), servers.on(f, "lan0", 1), direct.on(f, "ret0", 1)},
				Routes:    []Route{{To: single(vip(f)), Via: servers.addr(f, 10)}},
			},
			{
				Name: "lb", Forward: true,
				Addresses: []Address{servers.on(f, "eth0", 10), inner.on(f, "eth1", 1)},
				Routes:    []Route{gateway(f, servers.addr(f, 1)), {To: single(vip(f)), Via: inner.addr(f, 2)}},
			},
			{
				Name: "backend", Sysctls: hideVIP,
				Addresses: []Address{inner.on(f, "eth0", 2), direct.on(f, "eth1", 2), vipOnLo(f)},
				Routes:    []Route{gateway(f, direct.addr(f, 1))},
			},
		},
		Links: []Link{
			{Port{"client", "eth0"}, Port{"router", "wan0"}},
			{Port{"router", "lan0"}, Port{"lb", "eth0"}},
			{Port{"lb", "eth1"}, Port{"backend", "eth0"}},
			{Port{"backend", "eth1"}, Port{"router", "ret0"}},
		},
		Services: []Service{{Host: "backend", Address: anywhere(f, 80)}},
		Client:   toVIP(f),
	}
}

// nat is a load balancer that rewrites: VIP:80 becomes backend:8080, and the
// reply comes back through it.
//
//	client eth0 -- eth0 lb eth1 -- eth0 backend
func nat(f Family) Topology {
	return Topology{
		Name: "nat" + f.suffix(), Family: f,
		Hosts: []Host{
			clientHost(f),
			{
				Name: "lb", Forward: true,
				Addresses: []Address{clients.on(f, "eth0", 1), servers.on(f, "eth1", 1)},
				Chains:    []Chain{dnatChain(f, 20)},
			},
			{
				Name:      "backend",
				Addresses: []Address{servers.on(f, "eth0", 20)},
				Routes:    []Route{gateway(f, servers.addr(f, 1))},
			},
		},
		Links: []Link{
			{Port{"client", "eth0"}, Port{"lb", "eth0"}},
			{Port{"lb", "eth1"}, Port{"backend", "eth0"}},
		},
		Services: []Service{{Host: "backend", Address: anywhere(f, 8080)}},
		Client:   toVIP(f),
	}
}

// natTunnel is a service whose pods are on another node: the load balancer
// translates and sends the request on through a tunnel, and the reply comes back by it.
//
//	client eth0 -- eth0 lb eth1 -- eth0 node pod0 -- eth0 pod
//	                   vx0 ======== vx0
func natTunnel(f Family) Topology {
	near, far, pod := servers.addr(f, 10), servers.addr(f, 20), direct.addr(f, 53)
	service := dnatTo(f, addrPort(pod, 8080))
	service.Rules = append(service.Rules, rule("service", dnat(addrPort(pod, 8080)), toAddress(vip(f)), toUDPPort(80)))
	return Topology{
		Name: "nat-tunnel" + f.suffix(), Family: f,
		Hosts: []Host{
			clientHost(f),
			{
				Name: "lb", Forward: true,
				Addresses: []Address{clients.on(f, "eth0", 1), servers.on(f, "eth1", 10), inner.on(f, "vx0", 1)},
				Tunnels:   []Tunnel{{Device: "vx0", VNI: 42, Local: near, Remote: far}},
				Routes:    []Route{{To: direct.in(f), Via: inner.addr(f, 2)}},
				Chains:    []Chain{service},
			},
			{
				Name: "node", Forward: true,
				Addresses: []Address{servers.on(f, "eth0", 20), inner.on(f, "vx0", 2), direct.on(f, "pod0", 1)},
				Tunnels:   []Tunnel{{Device: "vx0", VNI: 42, Local: far, Remote: near}},
				Routes:    []Route{{To: clients.in(f), Via: inner.addr(f, 1)}},
			},
			{Name: "pod", Addresses: []Address{direct.on(f, "eth0", 53)}, Routes: []Route{gateway(f, direct.addr(f, 1))}},
		},
		Links: []Link{
			{Port{"client", "eth0"}, Port{"lb", "eth0"}},
			{Port{"lb", "eth1"}, Port{"node", "eth0"}},
			{Port{"node", "pod0"}, Port{"pod", "eth0"}},
		},
		Services: []Service{{Host: "pod", Address: anywhere(f, 8080)}},
		Client:   toVIP(f),
	}
}

// dnatChain sends VIP:80 to port 8080 of server number i.
func dnatChain(f Family, i byte) Chain { return dnatTo(f, addrPort(servers.addr(f, i), 8080)) }

// dnatTo sends VIP:80 elsewhere.
func dnatTo(f Family, to netip.AddrPort) Chain {
	return Chain{
		Family: ipFamily(f), Table: "balancer", Name: "prerouting", Hook: "PREROUTING", Type: nftables.ChainTypeNAT, Priority: -100,
		Rules: []FilterRule{rule("service", dnat(to), toAddress(vip(f)), toPort(80))},
	}
}

// clientHost is the client, behind gateway number 1 of its network.
func clientHost(f Family) Host {
	return Host{Name: "client", Addresses: []Address{clients.on(f, "eth0", 7)}, Routes: []Route{gateway(f, clients.addr(f, 1))}}
}

// toVIP is a client that asks the VIP.
func toVIP(f Family) Client { return Client{Host: "client", Server: addrPort(vip(f), 80)} }

// vipOnLo is how a backend owns the VIP without claiming it on the LAN.
func vipOnLo(f Family) Address { return Address{Device: "lo", Prefix: single(vip(f))} }

// hideVIP keeps a backend from answering or announcing the VIP by ARP (ip-sysctl.rst).
var hideVIP = []Sysctl{{"net.ipv4.conf.all.arp_ignore", "1"}, {"net.ipv4.conf.all.arp_announce", "2"}}

// quiet keeps a load balancer that forwards out of the device it received on from sending ICMP redirects.
var quiet = []Sysctl{{"net.ipv4.conf.all.send_redirects", "0"}, {"net.ipv4.conf.default.send_redirects", "0"}}
