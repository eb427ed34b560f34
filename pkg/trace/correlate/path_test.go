package correlate

import "testing"

// TestFlooded: a switch that does not know yet where a host is floods a packet to
// other hosts, too. One of them gets it later, by a tunnel that a program makes.
func TestFlooded(t *testing.T) {
	syn, inner := tcp("198.51.100.7:41822", "203.0.113.80:80"), tcp("198.51.100.7:41822", "10.9.0.5:8080")
	for _, tt := range []struct {
		leaves uint8
		in     uint32
	}{{61, 0}, {63, 3}, {62, 3}} {
		s := newScene(t, Config{})
		s.syn(syn, 7).ttl(64).tx(client, 0, 2)
		s.syn(syn, 7).ttl(63).otherHost().rx(backend, 3)
		s.syn(inner, 7).ttl(tt.leaves).tx(backend, 0, 4)
		hops := s.path().Request
		if last := hops[len(hops)-1]; last.In.Index != tt.in || last.Out.Index != 4 {
			t.Errorf("flooded with TTL 63, left with %d: came by %d and left by %d; want %d and 4", tt.leaves, last.In.Index, last.Out.Index, tt.in)
		}
	}
}
