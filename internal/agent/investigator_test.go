package agent

import (
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"github.com/replypath/replypath/internal/netstate"
	"github.com/replypath/replypath/pkg/trace"
)

func connection(src string) trace.Tuple {
	return trace.Tuple{Protocol: trace.TCP, Src: netip.MustParseAddrPort(src), Dst: netip.MustParseAddrPort("203.0.113.80:80")}
}

// What befalls a path after its fault was named comes of that fault.
func TestOneFindingForAPath(t *testing.T) {
	i := newInvestigator("node", nil, nil, nil, slog.New(slog.DiscardHandler))
	now := time.Now()
	path := trace.Path{Connection: connection("198.51.100.7:1"), First: now}
	c := &trace.Case{Path: path, Event: trace.Event{Time: now}}
	cause := &trace.Finding{ID: "reply-no-route", Direction: trace.Reply, Fix: []string{"ip route add"}}
	other := &trace.Finding{ID: "netfilter-drop", Direction: trace.Reply, Fix: []string{"nft"}}
	if !i.claims(cause, c) {
		t.Error("the first finding is refused")
	}
	if !i.claims(cause, c) {
		t.Error("its repetition is refused")
	}
	if i.claims(other, c) {
		t.Error("a second fault is blamed for the same path")
	}
	c.Path.First = now.Add(time.Second)
	if !i.claims(other, c) {
		t.Error("another connection with the same ports is taken for the first")
	}
	if n := len(i.findings()); n != 2 {
		t.Errorf("%d kinds of findings counted, want 2", n)
	}
}

func TestExplainedIsBounded(t *testing.T) {
	i := newInvestigator("node", nil, nil, nil, slog.New(slog.DiscardHandler))
	c := &trace.Case{}
	for n := range 3 * maxExplained {
		c.Path.First = time.Unix(0, int64(n))
		i.claims(&trace.Finding{}, c)
	}
	if n := len(i.explained); n > maxExplained {
		t.Errorf("%d paths remembered, want at most %d", n, maxExplained)
	}
}

// Connections that differ in the client's port alone share an answer.
func TestKeyOf(t *testing.T) {
	q := func(src string, flags trace.TCPFlags) trace.Question {
		return trace.Question{Place: trace.Place{Netns: 1}, Packet: connection(src), Flags: flags}
	}
	a, b, c := q("198.51.100.7:1", trace.SYN), q("198.51.100.7:2", trace.SYN), q("198.51.100.8:1", trace.SYN)
	if keyOf(&a) != keyOf(&b) {
		t.Error("another client port is another question")
	}
	if keyOf(&a) == keyOf(&c) {
		t.Error("another client is the same question")
	}
	d := a
	d.Place.Name = "made again under this inode"
	if keyOf(&a) == keyOf(&d) {
		t.Error("another namespace with the same inode is the same question")
	}
	reply := q
	e, f := reply("203.0.113.80:80", trace.SYN|trace.ACK), q("203.0.113.80:81", trace.SYN|trace.ACK)
	if keyOf(&e) == keyOf(&f) {
		t.Error("a reply from another server port is the same question")
	}
}

func TestOnLink(t *testing.T) {
	address := func(dev string, prefix string) netstate.Address {
		return netstate.Address{Device: trace.Device{Name: dev}, Prefix: netip.MustParsePrefix(prefix)}
	}
	own := []netstate.Address{address("lo", "203.0.113.80/32"), address("eth0", "10.2.0.20/24"), address("eth0", "2001:db8:2::14/64"), address("eth0", "fe80::1/64")}
	theirs := []netstate.Address{address("wan", "198.51.100.1/24"), address("lan", "10.2.0.1/24"), address("lan", "2001:db8:2::1/64"), address("lan", "fe80::2/64"), address("lo", "203.0.113.80/32")}
	if got := onLink(own, theirs, false); len(got) != 1 || got[0].Addr != netip.MustParseAddr("10.2.0.1") || got[0].Device.Name != "eth0" {
		t.Errorf("IPv4: %+v", got)
	}
	if got := onLink(own, theirs, true); len(got) != 1 || got[0].Addr != netip.MustParseAddr("2001:db8:2::1") {
		t.Errorf("IPv6: %+v", got)
	}
}
