// Package mesh knows service meshes by what they leave in a network namespace:
// the names of their chains, the ports of their proxies, the users that these run
// as; and the names that they give to what is in a mesh. It is pure.
package mesh

import "strings"

// Mesh is a service mesh whose sidecars traffic is redirected to.
type Mesh struct {
	Name string
	// Chains are what the names of its chains start with, in capitals, with _ for -.
	Chains []string
	// Inbound and InboundChain: what catches calls from outside.
	InboundChains []string
	Inbound       []uint16 // ports of its proxy
	Outbound      []uint16
	DNS           []uint16
	UID           uint32
	CNI           []string // types of its CNI plugin
	// Install writes its rules, in the namespace where it is run; %d is the proxy's uid.
	Install string
	// SelfCalls: what the proxy sends to an address of its own namespace is brought back to its inbound port.
	SelfCalls bool
}

// Known are the meshes that are known by name.
var Known = []Mesh{
	{
		Name: "Kuma", Chains: []string{"KUMA_MESH_", "MESH_INBOUND", "MESH_OUTPUT", "MESH_OUTBOUND", "MESH_REDIRECT", "MESH_IN_REDIRECT"},
		InboundChains: []string{"MESH_INBOUND", "MESH_IN_REDIRECT", "KUMA_MESH_INBOUND"},
		Inbound:       []uint16{15006, 15010}, Outbound: []uint16{15001}, DNS: []uint16{15053}, UID: 5678,
		CNI: []string{"kuma-cni"}, Install: "kumactl install transparent-proxy --kuma-dp-uid %d --redirect-dns", SelfCalls: true,
	},
	{
		Name: "Istio", Chains: []string{"ISTIO_"}, InboundChains: []string{"ISTIO_INBOUND", "ISTIO_IN_REDIRECT", "ISTIO_TPROXY"},
		Inbound: []uint16{15006}, Outbound: []uint16{15001}, DNS: []uint16{15053}, UID: 1337,
		CNI: []string{"istio-cni"}, Install: "pilot-agent istio-iptables -p 15001 -z 15006 -u %d -m REDIRECT -i '*' -x '' -b '*' -d 15090,15021,15020", SelfCalls: true,
	},
	{
		Name: "Linkerd", Chains: []string{"PROXY_INIT_"}, InboundChains: []string{"PROXY_INIT_REDIRECT"},
		Inbound: []uint16{4143}, Outbound: []uint16{4140}, UID: 2102,
		CNI: []string{"linkerd-cni"}, Install: "proxy-init -p 4143 -o 4140 -u %d",
	},
	{
		Name: "Consul", Chains: []string{"CONSUL_"}, InboundChains: []string{"CONSUL_PROXY_INBOUND", "CONSUL_PROXY_IN_REDIRECT"},
		Inbound: []uint16{20000}, Outbound: []uint16{15001}, DNS: []uint16{8600}, UID: 5995,
		CNI: []string{"consul-cni"}, Install: "consul connect redirect-traffic -proxy-uid %d -proxy-id PROXY",
	},
	{
		Name: "Open Service Mesh", Chains: []string{"OSM_PROXY_"}, InboundChains: []string{"OSM_PROXY_INBOUND", "OSM_PROXY_IN_REDIRECT"},
		Inbound: []uint16{15003}, Outbound: []uint16{15001}, UID: 1500,
	},
	{
		Name: "App Mesh", Chains: []string{"APPMESH_"}, InboundChains: []string{"APPMESH_INGRESS"},
		Inbound: []uint16{15000}, Outbound: []uint16{15001}, UID: 1337,
	},
}

// OfChain returns the mesh that has a chain, however its name is written; nil when none has.
func OfChain(chain string) *Mesh {
	name := canonical(chain)
	for i := range Known {
		for _, prefix := range Known[i].Chains {
			if strings.HasPrefix(name, prefix) {
				return &Known[i]
			}
		}
	}
	return nil
}

// IsInbound reports whether a chain is one of those that catch calls from outside.
func (m *Mesh) IsInbound(chain string) bool {
	for _, prefix := range m.InboundChains {
		if strings.HasPrefix(canonical(chain), prefix) {
			return true
		}
	}
	return false
}

// Named returns the mesh of that name; nil when it is not known.
func Named(name string) *Mesh {
	for i := range Known {
		if Known[i].Name == name {
			return &Known[i]
		}
	}
	return nil
}

// OfPlugin returns the mesh whose CNI plugin is of that type; nil when it is nobody's.
func OfPlugin(plugin string) *Mesh {
	for i := range Known {
		for _, p := range Known[i].CNI {
			if p == plugin {
				return &Known[i]
			}
		}
	}
	return nil
}

func canonical(chain string) string {
	return strings.ReplaceAll(strings.ToUpper(chain), "-", "_")
}
