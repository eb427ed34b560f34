package lab

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"

	"github.com/replypath/replypath/pkg/trace"
)

// switched is a client and a server at the ports of an Open vSwitch, whose
// datapath is the kernel's.
//
//	client eth0 -- client switch server -- eth0 server
func switched(f Family) Topology {
	return Topology{
		Name: "switched" + f.suffix(), Family: f,
		Hosts: []Host{
			{Name: "client", Addresses: []Address{servers.on(f, "eth0", 7)}},
			{Name: "switch", Switch: &Switch{Kernel: true, Pods: []string{"client", "server"}, Flows: []string{"priority=0,actions=NORMAL"}}},
			{Name: "server", Addresses: []Address{servers.on(f, "eth0", 20)}},
		},
		Links: []Link{
			{Port{"client", "eth0"}, Port{"switch", "client"}},
			{Port{"server", "eth0"}, Port{"switch", "server"}},
		},
		Services: []Service{{Host: "server", Address: anywhere(f, 80)}},
		Client:   Client{Host: "client", Server: addrPort(servers.addr(f, 20), 80)},
	}
}

// switchedNode is a client at the port of a node's Open vSwitch, as pods are; the
// node's own stack forwards what comes by gw0.
//
//	client eth0 -- pod0 switch gw0 -- node eth0 -- eth0 server
func switchedNode(f Family) Topology {
	return Topology{
		Name: "switched-node" + f.suffix(), Family: f,
		Hosts: []Host{
			{Name: "client", Addresses: []Address{inner.on(f, "eth0", 5)}, Routes: []Route{gateway(f, inner.addr(f, 1))}},
			{
				Name: "node", Forward: true,
				Addresses: []Address{inner.on(f, podGateway, 1), servers.on(f, "eth0", 10)},
				Switch:    &Switch{Kernel: true, Pods: []string{"pod0"}, Flows: []string{"priority=0,actions=NORMAL"}},
			},
			{Name: "server", Addresses: []Address{servers.on(f, "eth0", 20)}, Routes: []Route{gateway(f, servers.addr(f, 10))}},
		},
		Links: []Link{
			{Port{"client", "eth0"}, Port{"node", "pod0"}},
			{Port{"node", "eth0"}, Port{"server", "eth0"}},
		},
		Services: []Service{{Host: "server", Address: anywhere(f, 80)}},
		Client:   Client{Host: "client", Server: addrPort(servers.addr(f, 20), 80)},
	}
}

// switchLabs are packets that Open vSwitch's kernel datapath drops.
func switchLabs(f Family) []Lab {
	const id = "openvswitch-drop"
	labs := []Lab{
		{Name: "healthy", Topology: switched(f), Title: "client and server at one Open vSwitch",
			Doc: "The datapath is the kernel's. It has no flow for the first packets, and asks its daemon, which is no loss.",
			Setting: []Change{
				addFlow("switch", "priority=200,"+flowTCP(f)+",tp_dst=81,actions=drop"),
				addFlow("switch", "priority=200,"+flowTCP(f)+",tp_src=81,actions=drop"),
			}},
		{Name: "healthy", Topology: switchedNode(f), Title: "a pod at its node's Open vSwitch",
			Doc: "The datapath is the kernel's; the node forwards what the pod sends by gw0."},
		{Name: "flow", Topology: switched(f), Finding: id, Direction: trace.Request, Where: "switch",
			Title:  "a flow of Open vSwitch drops the request",
			Doc:    "Kernels before 6.6 say nothing of it: the packet comes in at a port, and that is all.",
			Faults: []Change{addFlow("switch", "priority=200,"+flowTCP(f)+",tp_dst=80,actions=drop")}},
		{Name: "reply-flow", Topology: switched(f), Finding: id, Direction: trace.Reply, Where: "switch",
			Title:  "a flow of Open vSwitch drops the reply",
			Doc:    "It names the service's port as the source.",
			Faults: []Change{addFlow("switch", "priority=200,"+flowTCP(f)+",tp_src=80,actions=drop")}},
		{Name: "flow", Topology: switchedNode(f), Finding: id, Direction: trace.Request, Where: "node",
			Title:  "a node's Open vSwitch drops what its pod sends",
			Doc:    "As a network policy of Antrea or OVN-Kubernetes does.",
			Faults: []Change{addFlow("node", "priority=200,in_port=3,"+flowTCP(f)+",tp_dst=80,actions=drop")}},
		{Name: "no-daemon", Topology: switched(f), Finding: id, Direction: trace.Request, Where: "switch",
			Title: "Open vSwitch's daemon is gone, and the kernel has nobody to ask",
			Doc:   "The datapath stays, and knows flows for what was going on; what is new finds nobody.",
			Setting: []Change{
				neighborOf(f, "client", "server", servers.addr(f, 20)),
				neighborOf(f, "server", "client", servers.addr(f, 7)),
			},
			Faults: []Change{killDaemon("switch")}},
	}
	for i := range labs {
		labs[i].Unforeseen = "what a switch does with packets is not known"
	}
	return complete(labs)
}

// addFlow teaches a switch one flow more.
func addFlow(name, flow string) Change {
	return on(name, "ovs-ofctl add-flow "+podBridge+" "+flow, func(h *host) error {
		return h.call(context.Background(), "ovs-ofctl", "add-flow", "unix:"+filepath.Join(h.state, podBridge+".mgmt"), flow)
	})
}

// neighborOf lets a host know another's MAC, so that it need not ask.
func neighborOf(f Family, name, other string, address netip.Addr) Change {
	return Change{Host: name, Text: ipCommand(f == IPv6) + "neigh replace " + address.String() + " dev eth0, with the MAC of " + other, apply: func(n *Network) error {
		h, o := n.hosts[name], n.hosts[other]
		if h == nil || o == nil {
			return fmt.Errorf("no host %s or %s", name, other)
		}
		far, err := o.link("eth0")
		if err != nil {
			return err
		}
		return h.addNeighbor(Neighbor{Device: "eth0", Address: address, MAC: far.Attrs().HardwareAddr.String()})
	}}
}
