package lab

import (
	"embed"
	"fmt"
	"net/netip"
	"os/exec"
	"path"
	"strings"
)

// meshRules are rules as meshes write them; each file says whose.
//
//go:embed rules
var meshRules embed.FS

// redirection is a mesh's rules, and the proxy that they are for.
type redirection struct {
	file  string // of meshRules, without the ending
	tool  string // that reads it: "nft", "iptables-nft" or "iptables-legacy"
	proxy Proxy
}

// kuma is what kumactl writes, in the language of a tool.
func kuma(f Family, tool string) redirection {
	p := Proxy{UID: 5678, Inbound: 15006, Outbound: 15001, DNS: 15053, Source: netip.MustParseAddr("127.0.0.6")}
	if f == IPv6 {
		p.Inbound, p.Source = 15010, netip.MustParseAddr("::6")
	}
	return redirection{file: "kuma-1.8.1.rules", tool: tool, proxy: p}
}

// sidecar is nobody's: nft's own language, other ports, another user, no address of its own.
var sidecar = redirection{file: "sidecar.nft", tool: "nft", proxy: Proxy{UID: 2001, Inbound: 9002, Outbound: 9001, DNS: 9053}}

// istioTProxy hands what comes in to the proxy without changing it. The proxy runs as root, as Istio has it
// then, and calls the application from its client's address.
var istioTProxy = redirection{file: "istio-1.20-tproxy.rules", tool: "iptables-legacy",
	proxy: Proxy{Inbound: 15006, Outbound: 15001, Transparent: true, Posing: true, Mark: 1337}}

// ambient is Istio without sidecars: rules tell the proxy, which runs as root, by the mark of its packets.
var ambient = redirection{file: "istio-ambient.rules", tool: "iptables-nft", proxy: Proxy{Inbound: 15006, Outbound: 15001, DNS: 15053, Mark: 1337}}

// byMarks is nobody's: what applications send is marked, routed to lo by that, and handed over there.
var byMarks = redirection{file: "bymark.nft", tool: "nft", proxy: Proxy{UID: 4004, Inbound: 6002, Outbound: 6001, Transparent: true}}

// text is the rules for an IP version.
func (r redirection) text(f Family) string {
	file := r.file
	if f == IPv6 && r.tool != "nft" {
		file += "6"
	}
	b, err := meshRules.ReadFile(path.Join("rules", file))
	if err != nil {
		panic(err) // they are compiled in
	}
	return string(b)
}

// program reads the rules.
func (r redirection) program(f Family) []string {
	if r.tool == "nft" {
		return []string{"nft", "-f", "-"}
	}
	return []string{iptables(f, r.tool) + "-restore"}
}

// iptables is the command of an IP version: iptables-nft, ip6tables-legacy, …
func iptables(f Family, tool string) string {
	if f == IPv6 {
		return strings.Replace(tool, "iptables", "ip6tables", 1)
	}
	return tool
}

// redirects writes a mesh's rules.
func redirects(name string, f Family, r redirection) Change {
	return command(name, r.text(f), r.program(f)...)
}

// command runs a program in a host's namespace.
func command(name, stdin string, args ...string) Change {
	text := strings.Join(args, " ")
	change := on(name, text, func(h *host) error {
		program, err := findProgram(args[0])
		if err != nil {
			return fmt.Errorf("%w: %s", err, args[0])
		}
		c := exec.Command(program, args[1:]...)
		c.Stdin = strings.NewReader(stdin)
		return enter(h.ns, func() error {
			if out, err := c.CombinedOutput(); err != nil {
				return fmt.Errorf("%s: %w: %s", text, err, strings.TrimSpace(string(out)))
			}
			return nil
		})
	})
	change.needs = args[0]
	return change
}

// meshIn is a client that calls an application in a pod.
//
//	client eth0 -- wan0 node pod0 -- eth0 pod
func meshIn(f Family) Topology {
	return Topology{
		Name: "mesh-in" + f.suffix(), Family: f,
		Hosts: []Host{
			clientHost(f),
			{Name: "node", Forward: true, Addresses: []Address{clients.on(f, "wan0", 1), servers.on(f, "pod0", 1)}},
			podHost(f),
		},
		Links: []Link{
			{Port{"client", "eth0"}, Port{"node", "wan0"}},
			{Port{"node", "pod0"}, Port{"pod", "eth0"}},
		},
		Services: []Service{{Host: "pod", Address: anywhere(f, 8080)}},
		Client:   Client{Host: "client", Server: addrPort(servers.addr(f, 20), 8080)},
	}
}

// meshOut is an application in a pod that calls a server.
//
//	pod eth0 -- pod0 node wan0 -- eth0 server
func meshOut(f Family) Topology {
	t := meshIn(f)
	t.Name = "mesh-out" + f.suffix()
	t.Hosts[0].Name = "server"
	t.Links[0].A.Host = "server"
	t.Services = []Service{{Host: "server", Address: anywhere(f, 80)}}
	t.Client = Client{Host: "pod", Server: addrPort(clients.addr(f, 7), 80)}
	return t
}

// meshDNS is an application that asks a resolver outside its pod.
func meshDNS(f Family) Topology {
	t := meshOut(f)
	t.Name = "mesh-dns" + f.suffix()
	t.Hosts[0].Addresses = append(t.Hosts[0].Addresses, Address{Device: "lo", Prefix: single(nameServer(f))})
	t.Hosts[1].Routes = []Route{{To: single(nameServer(f)), Via: clients.addr(f, 7)}}
	t.Services = []Service{{Host: "server", Address: addrPort(nameServer(f), 53), UDP: true}}
	t.Client = Client{Host: "pod", Server: addrPort(nameServer(f), 53), UDP: true}
	return t
}

// nameServer is the name server that kumactl found when it wrote the rules.
func nameServer(f Family) netip.Addr {
	if f == IPv6 {
		return netip.MustParseAddr("fd00:96::a")
	}
	return netip.MustParseAddr("10.96.0.10")
}

func podHost(f Family) Host {
	h := Host{Name: "pod", Addresses: []Address{servers.on(f, "eth0", 20)}, Routes: []Route{gateway(f, servers.addr(f, 1))}}
	if f == IPv6 {
		h.Addresses = append(h.Addresses, Address{Device: "lo", Prefix: single(netip.MustParseAddr("::6"))})
	}
	return h
}
