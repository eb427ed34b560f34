package netstate

import (
	"errors"
	"slices"
	"testing"
)

func TestAddresses(t *testing.T) {
	p := plans["ipv4"]
	h, _ := newHost(t, p)
	ownsVIP(h, p)
	h.address("eth0", plans["ipv6"].own0)
	r := newTestReader(t, nil)
	all, err := r.Addresses(h.inode)
	must(t, err)
	var got []string
	for _, a := range all {
		if a.Prefix.Addr().IsLinkLocalUnicast() || a.Prefix.Addr().IsLoopback() {
			continue
		}
		if a.Device.Index != h.index(a.Device.Name) {
			t.Errorf("%s has index %d", a.Device.Name, a.Device.Index)
		}
		got = append(got, a.Device.Name+" "+a.Prefix.String())
	}
	slices.Sort(got)
	want := []string{"eth0 " + p.own0, "eth0 " + plans["ipv6"].own0, "eth1 " + p.own1, "lo " + p.vip + "/32"}
	if !slices.Equal(got, want) {
		t.Errorf("Addresses = %q, want %q", got, want)
	}
	if _, err := r.Addresses(1); !errors.Is(err, ErrNoNamespace) {
		t.Errorf("Addresses of no namespace: %v, want ErrNoNamespace", err)
	}
}

func TestReachable(t *testing.T) {
	c := newCatalog(t)
	c.add("blue", "mnt")
	c.add("green", "uts")
	d := c.open()
	got := d.Reachable(10)
	for _, ns := range []string{"mnt", "uts"} {
		if !slices.Contains(got, c.inode(ns)) {
			t.Errorf("Reachable = %v, want %s (%d) in it", got, ns, c.inode(ns))
		}
	}
	if len(got) != 3 || !slices.Contains(got, d.host.Netns) || len(d.Reachable(1)) != 1 {
		t.Errorf("Reachable = %v, want the host and two others", got)
	}
}
