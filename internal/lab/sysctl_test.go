package lab

import (
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A host may be set up in another way, and its namespaces begin so: a router, for example. What is set for one namespace
// must be enough for the next.
func TestDepartures(t *testing.T) {
	needRoot(t)
	inherited := []Sysctl{
		{"net.ipv4.conf.all.forwarding", "1"}, // which resets redirects when it is set back
		{"net.ipv4.conf.default.rp_filter", "1"},
		{"net.ipv6.conf.all.accept_ra", "2"},
	}
	var known departing
	for range 2 {
		err := onThread(func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return err
			}
			for _, s := range inherited {
				if err := writeSysctl(s); err != nil {
					return err
				}
			}
			for _, s := range known.find() {
				if err := writeSysctl(s); err != nil {
					return err
				}
			}
			for _, s := range baseline() {
				got, err := os.ReadFile(s.path())
				if err != nil || strings.TrimSpace(string(got)) != s.Value {
					t.Errorf("%s = %s, want %s (%v)", s.Name, got, s.Value, err)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range inherited {
		if !slices.ContainsFunc(known.settings, func(d Sysctl) bool { return d.Name == s.Name }) {
			t.Errorf("%s is not among those that are set: %v", s.Name, known.settings)
		}
	}
}
