package correlate

import (
	"testing"

	"github.com/replypath/replypath/pkg/trace"
)

// TestFastOpen: a SYN may bring data, which its answer acknowledges with it. The
// answer goes back by a host that the request did not come through.
func TestFastOpen(t *testing.T) {
	direct, local := tcp("198.51.100.7:41822", "203.0.113.80:80"), tcp("198.51.100.7:41822", "10.9.0.5:8080")
	for data, want := range map[uint32]bool{0: true, 1400: true, 8000: true, 1 << 20: false} {
		s := newScene(t, Config{})
		s.syn(direct, 1000).tx(client, 0, 1).rx(router, 2).nat(local).tx(router, 2, 3).rx(backend, 4)
		s.send(local.Reverse(), trace.SYN|trace.ACK, 5000, 1001+data).tx(backend, 0, 4).rx(other, 5).tx(other, 5, 6).rx(router, 7).nat(direct.Reverse()).tx(router, 7, 2).rx(client, 1)
		s.table.Flush()
		done := s.table.Done()
		p := done[0]
		if last := done[len(done)-1]; last.Connection == direct {
			p = last // handed out again
		}
		if p.Answered != want || want && (len(p.Request) != 3 || len(p.Reply) != 4) || p.Sequence != 1000 {
			t.Errorf("%d bytes: answered %v by %d hops, back by %d", data, p.Answered, len(p.Request), len(p.Reply))
		}
		s.wait(2 * s.table.cfg.Idle)
		s.table.Advance(s.now)
		if n := len(s.table.opened); n != 0 {
			t.Errorf("%d are kept of connections that are gone", n)
		}
	}
}
