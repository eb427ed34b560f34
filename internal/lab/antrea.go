package lab

import (
	"fmt"
	"net/netip"

	"github.com/replypath/replypath/pkg/trace"
)

// antrea is a service's external address in DSR mode, after Antrea: the router
// sends it to the ingress node, whose switch tunnels the packet unchanged to the
// endpoint's node; there the switch translates to the pod, and the pod's answer
// goes straight to the client, with the external address as its source.
//
//	client eth0 -- wan0 router lan0 -- switch -- eth0 ingress eth1 ---- m0
//	                                          -- eth0 endpoint eth1 --- m1 mgmt
//	                                                  pod0 -- eth0 pod
func antrea(f Family) Topology {
	return Topology{
		Name: "antrea" + f.suffix(), Family: f,
		Hosts: []Host{
			withSummer(clientHost(f), "eth0"),
			{
				Name: "router", Forward: true,
				Addresses: []Address{clients.on(f, "wan0", 1), servers.on(f, "lan0", 1)},
				Routes:    []Route{{To: single(vip(f)), Via: servers.addr(f, 10)}},
			},
			{Name: "switch", Bridge: "br0"},
			antreaIngress(f),
			antreaEndpoint(f),
			withSummer(Host{
				Name:      "pod",
				Addresses: []Address{inner.on(f, "eth0", 5)},
				Routes:    []Route{gateway(f, inner.addr(f, 1))},
			}, "eth0"),
			{
				Name: "mgmt", Forward: true,
				Addresses: []Address{transit.on(f, "m0", 1), direct.on(f, "m1", 1)},
			},
		},
		Links: []Link{
			{Port{"client", "eth0"}, Port{"router", "wan0"}},
			{Port{"router", "lan0"}, Port{"switch", "router"}},
			{Port{"ingress", "eth0"}, Port{"switch", "ingress"}},
			{Port{"endpoint", "eth0"}, Port{"switch", "endpoint"}},
			{Port{"pod", "eth0"}, Port{"endpoint", "pod0"}},
			{Port{"ingress", "eth1"}, Port{"mgmt", "m0"}},
			{Port{"endpoint", "eth1"}, Port{"mgmt", "m1"}},
		},
		Services: []Service{{Host: "pod", Address: anywhere(f, 8080)}},
		Client:   toVIP(f),
	}
}

// withSummer is a host that computes the checksums of what it sends by a device.
func withSummer(h Host, device string) Host {
	h.Checksums = append(h.Checksums, device)
	return h
}

// serviceMAC is the address that a node's switch has for all services.
const serviceMAC = "aa:bb:cc:dd:ee:ff"

// antreaIngress is the node that the router sends the service's packets to.
func antreaIngress(f Family) Host {
	return Host{
		Name: "ingress", Forward: true, Sysctls: leaveToSwitch,
		Addresses: []Address{servers.on(f, uplinkBridge, 10), transit.on(f, "eth1", 2)},
		Routes:    []Route{gateway(f, servers.addr(f, 1)), {To: single(vip(f)), Device: podGateway}},
		Switch: &Switch{
			Uplink: "eth0",
			Flows: []string{fmt.Sprintf("priority=200,in_port=2,%s,%s=%s,tp_dst=80,actions=set_field:%s->%s,set_field:0->tun_id,output:1",
				flowTCP(f), flowTo(f), vip(f), servers.addr(f, 20), flowTunnelTo(f))},
			Peers:     []Peer{{"endpoint", servers.addr(f, 20)}},
			Neighbors: []Neighbor{{podGateway, vip(f), serviceMAC}},
		},
	}
}

// antreaEndpoint is the node of the pod: what comes out of the tunnel for the
// service is translated to the pod, what the pod answers is translated back and
// handed to the node's own stack.
func antreaEndpoint(f Family) Host {
	pod := netip.AddrPortFrom(inner.addr(f, 5), 8080)
	return Host{
		Name: "endpoint", Forward: true, Sysctls: leaveToSwitch,
		Addresses: []Address{servers.on(f, uplinkBridge, 20), inner.on(f, podGateway, 1), direct.on(f, "eth1", 2)},
		Routes:    []Route{gateway(f, servers.addr(f, 1))},
		Switch: &Switch{
			Uplink: "eth0", Pods: []string{"pod0"},
			Flows: []string{
				fmt.Sprintf("table=0,priority=200,in_port=1,%s,%s=%s,tp_dst=80,actions=ct(commit,zone=65520,nat(dst=%s),table=1)", flowTCP(f), flowTo(f), vip(f), pod),
				fmt.Sprintf("table=0,priority=190,in_port=3,%s,actions=ct(zone=65520,nat,table=2)", flowTCP(f)),
				"table=0,priority=180,arp,actions=NORMAL",
				"table=0,priority=180,icmp6,actions=NORMAL",
				"table=1,priority=100,ip,actions=set_field:{endpoint/gw0}->eth_src,set_field:{pod/eth0}->eth_dst,dec_ttl,output:3",
				"table=1,priority=100,ipv6,actions=set_field:{endpoint/gw0}->eth_src,set_field:{pod/eth0}->eth_dst,dec_ttl,output:3",
				"table=2,priority=100,ip,actions=set_field:{endpoint/gw0}->eth_dst,output:2",
				"table=2,priority=100,ipv6,actions=set_field:{endpoint/gw0}->eth_dst,output:2",
			},
			Peers: []Peer{{"ingress", servers.addr(f, 10)}},
		},
	}
}

// leaveToSwitch keeps a node's kernel from answering, at a port of the switch,
// for addresses that are behind it.
var leaveToSwitch = []Sysctl{{"net.ipv4.conf.all.arp_ignore", "1"}}

// Words of ovs-fields(7) that differ between the families.
func flowTCP(f Family) string {
	if f == IPv6 {
		return "tcp6"
	}
	return "tcp"
}

func flowTo(f Family) string {
	if f == IPv6 {
		return "ipv6_dst"
	}
	return "nw_dst"
}

func flowTunnelTo(f Family) string {
	if f == IPv6 {
		return "tun_ipv6_dst"
	}
	return "tun_dst"
}

// antreaLabs are the arms of DSR with an overlay network: what the node of the
// endpoint must have besides, and what kills the reply where it has not.
func antreaLabs(f Family) []Lab {
	router, mgmt := servers.addr(f, 1), direct.addr(f, 1)
	labs := []Lab{
		{Name: "healthy", Topology: antrea(f), Title: "direct server return through an overlay's switches",
			Doc: "Open vSwitch carries the request to the endpoint's node in user space; the pod's answer goes straight to the client."},
		{Name: "no-route", Topology: antrea(f), Finding: "reply-no-route", Direction: trace.Reply, Where: "endpoint",
			Title:  "the endpoint's node has no route to the client",
			Doc:    "The node has to send the pod's answer on to the client itself, and cannot; the ICMP error goes to the external address, so nobody hears of it.",
			Faults: []Change{deleteRoute("endpoint", gateway(f, router))}},
		{Name: "wrong-default", Topology: antrea(f), Finding: "reply-no-route", Direction: trace.Reply, Where: "endpoint",
			Title:  "the endpoint's node has its default route in the management network",
			Doc:    "The answer leaves by the wrong device, to a router that does not know the client. Nothing is dropped on the node.",
			Faults: []Change{replaceRoute("endpoint", gateway(f, router), Route{To: f.any(), Via: mgmt, Device: "eth1"})}},
	}
	if f == IPv4 { // IPv6 has no rp_filter
		labs = append(labs, antreaReversePathLabs()...)
	}
	for i := range labs {
		labs[i].Unforeseen = "what a switch in a program does with packets is not known"
	}
	return complete(labs)
}

func antreaReversePathLabs() []Lab {
	f := IPv4
	return []Lab{
		{Name: "healthy-rp-filter", Topology: antrea(f), Title: "strict reverse-path filtering, and routes that fit",
			Doc: "The endpoint's node, too, sends the external address to its switch, so what the switch hands back has a fitting source.",
			Setting: []Change{
				addRoute("endpoint", Route{To: single(vip(f)), Device: podGateway}),
				sysctl("endpoint", "net.ipv4.conf."+podGateway+".rp_filter", "1"),
				sysctl("ingress", "net.ipv4.conf."+uplinkBridge+".rp_filter", "1"),
			}},
		{Name: "rp-filter-endpoint", Topology: antrea(f), Finding: "rp-filter-drop", Direction: trace.Reply, Where: "endpoint",
			Title:  "strict reverse-path filtering where the switch hands answers to the endpoint's node",
			Doc:    "The answer comes from the external address by gw0, but the node's route to that address leaves by its uplink.",
			Faults: []Change{sysctl("endpoint", "net.ipv4.conf."+podGateway+".rp_filter", "1")}},
		{Name: "rp-filter-ingress", Topology: antrea(f), Finding: "rp-filter-drop", Direction: trace.Request, Where: "ingress",
			Title:   "strict reverse-path filtering on the ingress node's uplink",
			Doc:     "The ingress node never answers the client, so that its route to it may lead elsewhere; rp_filter minds all the same.",
			Setting: []Change{addRoute("ingress", Route{To: clients.in(f), Via: transit.addr(f, 1), Device: "eth1"})},
			Faults:  []Change{sysctl("ingress", "net.ipv4.conf."+uplinkBridge+".rp_filter", "1")}},
	}
}
