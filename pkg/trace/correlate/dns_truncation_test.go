package correlate

import (
	"net/netip"
	"testing"

	"github.com/replypath/replypath/pkg/trace"
)

// A resolver library asks for A and AAAA side by side: the connection that fetches the one
// may begin before the other one is asked.
func TestTruncatedTwins(t *testing.T) {
	r := newDNSRun(t)
	truncated := func(at float64, id uint16, name string) {
		q, a := asks(at, id, "10.0.0.7:1000", "10.0.0.53:53", name, 0)
		r.see(q)
		b := dnsMessage(t, a)
		b[2] |= 2 // TC
		r.table.Add(&trace.Event{Time: ms(a.at), Hook: rx, Netns: clientNS, Device: trace.Device{Index: 2}, Tuple: udpTuple(a.src, a.dst), SKB: 77, InIndex: 2, Payload: b, PayloadLength: uint32(len(b))})
	}
	truncated(0, 1, "www.test. 4")
	truncated(5, 2, "www.test. 6")
	for at, want := range map[float64]bool{3: true, 8: true, -3: false} {
		c := trace.Case{Path: trace.Path{Protocol: trace.TCP, Client: netip.MustParseAddrPort("10.0.0.7:2000"), Server: netip.MustParseAddrPort("10.0.0.53:53"), First: ms(at)}}
		r.table.Annotate(&c)
		if got := c.Truncated != ""; got != want {
			t.Errorf("a connection at %v ms: %q", at, c.Truncated)
		}
	}
}
