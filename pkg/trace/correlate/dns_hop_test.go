package correlate

import (
	"reflect"
	"testing"

	"github.com/replypath/replypath/pkg/trace"
)

// Whether a datagram is told at each hook with its payload, or at the first alone, the same comes of it.
func TestDNSHops(t *testing.T) {
	for n := 1; n <= 8; n++ {
		var of [2]*trace.Exchange
		for i := range of {
			r := newDNSRun(t)
			r.short = i == 1
			packets := kubeProxy(0, 9, "10.244.0.7:5353")
			r.see(packets[:n]...)
			of[i] = r.one(5100)
			for j := range of[i].Sightings {
				if of[i].Sightings[j].Place.Netns == 0 {
					t.Errorf("seen nowhere: %+v", of[i].Sightings[j])
				}
			}
		}
		if !reflect.DeepEqual(of[0], of[1]) {
			t.Errorf("after %d packets:\n%+v\n%+v", n, of[0], of[1])
		}
	}
}

// What comes further without having been told before says nothing; nor does another packet at the same address.
func TestDNSHopOfNothing(t *testing.T) {
	r := newDNSRun(t)
	r.short = true
	packets := kubeProxy(0, 9, "10.244.0.7:5353")
	r.see(packets[1]) // its skb is none that was seen
	if r.table.Len() != 0 || r.table.Stats().Unmatched != 1 {
		t.Errorf("%d exchanges, %+v", r.table.Len(), r.table.Stats())
	}
	r.see(packets[0])
	ev := trace.Event{Time: ms(1), Hook: rx, Netns: nodeNS, SKB: r.skb + 64, Datagram: r.table.waiting.first.sent[0], Tuple: udpTuple("10.244.0.7:5353", "10.96.0.10:53")}
	r.table.Add(&ev)
	if x := r.one(5100); len(x.Sightings) != 1 {
		t.Errorf("%+v", x.Sightings)
	}
	for i := range r.table.sent {
		if r.table.sent[i].x != nil && r.table.sent[i].x.queue == nil {
			t.Errorf("keeps what is forgotten: %+v", r.table.sent[i])
		}
	}
}
