//go:build vm

package vm

import (
	"slices"
	"testing"
)

// TestTrackingFull fills connection tracking: each namespace counts its own
// connections, but how many there may be is set for all of them, in the host's own
// namespace. So no lab can do it, and any lab whose load balancer tracks will do.
func TestTrackingFull(t *testing.T) {
	const limit = "net.netfilter.nf_conntrack_max"
	run(t, "modprobe", "nf_conntrack")
	for _, tt := range []struct {
		name, lab, max string
		flags, want    []string
	}{
		{"room for all", "nat-healthy", "4096", nil, nil},
		{"room for all, IPv6", "nat6-healthy", "4096", nil, nil},
		{"room for two", "nat-healthy", "2", nil, []string{"conntrack-full"}},
		{"room for two, IPv6", "nat6-healthy", "2", nil, []string{"conntrack-full"}},
		{"room for two, tracepoints alone", "nat-healthy", "2", []string{"--tier", "base"}, []string{"conntrack-full"}},
		{"room for two, datagrams", "nat-udp-healthy-again", "2", nil, []string{"conntrack-full"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			setSysctl(t, limit, tt.max)
			a := run(t, append([]string{program("replypath"), "lab", "run", tt.lab, "-o", "json"}, tt.flags...)...)
			if got := a.findings(t); !slices.Equal(got, tt.want) {
				t.Errorf("lab %s, %s = %s: findings %v, want %v", tt.lab, limit, tt.max, got, tt.want)
			}
		})
	}
}
