package correlate

import (
	"github.com/replypath/replypath/pkg/trace"
	"github.com/replypath/replypath/pkg/trace/dns"
)

// The kernel tells what a datagram holds where it is seen first. At the hooks that it comes
// to within the next ten milliseconds it tells only that it is the same one.

// datagram is the exchange that a datagram is of.
type datagram struct {
	key   uint64
	skb   uint64
	x     *exchange
	reply bool
}

func (t *DNSTable) datagram(key uint64) *datagram { return &t.sent[key>>8%uint64(len(t.sent))] }

// remember keeps which exchange a datagram is of.
func (t *DNSTable) remember(x *exchange, ev *trace.Event, reply bool) {
	*t.datagram(ev.Datagram) = datagram{ev.Datagram, ev.SKB, x, reply}
	if reply {
		x.sent[1] = ev.Datagram
	} else {
		x.sent[0] = ev.Datagram
	}
}

// known returns the exchange that a datagram is of; nil: none is known.
func (t *DNSTable) known(ev *trace.Event) (x *exchange, reply bool) {
	if d := t.datagram(ev.Datagram); d.key == ev.Datagram && d.skb == ev.SKB && d.x != nil && d.x.queue != nil {
		return d.x, d.reply
	}
	// What two processors tell at once may come in another order than that in which they took the place.
	if s := t.slot(ev.SKB); s.skb == ev.SKB && s.x != nil && s.x.queue != nil {
		for i, key := range s.x.sent {
			if key == ev.Datagram && s.reply == (i == 1) {
				return s.x, s.reply
			}
		}
	}
	return nil, false
}

// addHop takes in that a datagram came to one more hook.
func (t *DNSTable) addHop(ev *trace.Event) {
	x, reply := t.known(ev)
	if x == nil {
		t.stats.Unmatched++
		return
	}
	x.skb, x.skbAt, x.skbReply = ev.SKB, ev.Time, reply
	*t.slot(ev.SKB) = skbExchange{ev.SKB, x, reply}
	t.sight(x, ev, reply)
	if !reply || !x.isHome(ev) || x.coming == nil {
		return
	}
	if h, err := dns.Peek(x.coming); err == nil {
		message := x.coming
		x.coming = nil
		t.answer(x, &h, ev, message, x.comingLength)
	}
}
