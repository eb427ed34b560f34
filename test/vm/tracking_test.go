//go:build vm

package vm

import (
	"strings"
	"testing"
)

// TestTrackingFull fills connection tracking: each namespace counts its own
// connections, but how many there may be is set for all of them, in the host's own
// namespace. So no lab can do it, and any lab whose load balancer tracks will do.
func TestTrackingFull(t *testing.T) {
	const limit = "net.netfilter.nf_conntrack_max"
	run(t, "modprobe", "nf_conntrack")
	server := startAgent(t)
	for _, tt := range []struct {
		name, max string
		labs      []string
		flags     []string
		want      string
	}{
		{"room for all", "4096", []string{"nat-healthy", "nat6-healthy"}, server, "none"},
		{"room for two", "2", []string{"nat-healthy"}, server, "conntrack-full"},
		{"room for two, IPv6", "2", []string{"nat6-healthy"}, server, "conntrack-full"},
		{"room for two, tracepoints alone", "2", []string{"nat-healthy"}, []string{"--tier", "base"}, "conntrack-full"},
		{"room for two, datagrams", "2", []string{"nat-udp-healthy-again"}, server, "conntrack-full"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			setSysctl(t, limit, tt.max)
			_, results := runLabs(t, tt.labs, nil, tt.flags)
			if len(results) != len(tt.labs) {
				t.Errorf("%d results of labs %q", len(results), tt.labs)
			}
			for _, r := range results {
				if got, _, _ := strings.Cut(r.Got, " "); got != tt.want {
					t.Errorf("lab %s, %s = %s: %s, want %s", r.Lab, limit, tt.max, r.Got, tt.want)
				}
			}
		})
	}
}
