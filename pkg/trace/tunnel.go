package trace

// IsTunnel reports whether a kind of device, as ip-link(8) names it, wraps packets into others.
func IsTunnel(kind string) bool {
	switch kind {
	case "vxlan", "geneve", "gre", "gretap", "ip6gre", "ip6gretap", "ipip", "ip6tnl", "sit", "erspan", "ip6erspan", "vti", "vti6", "wireguard", "tun":
		return true
	}
	return false
}
