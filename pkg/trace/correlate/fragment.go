package correlate

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/replypath/replypath/pkg/trace"
)

const (
	// maxFragments bounds the datagrams whose fragments are known.
	maxFragments = 256
	// fragmentAge is how long fragments of one datagram are on their way.
	fragmentAge = 5 * time.Second
)

// fragmentKey is what fragments of one datagram have in common (RFC 791, section 2.3; RFC 8200, section 4.5).
type fragmentKey struct {
	src, dst netip.Addr
	protocol trace.Protocol
	id       uint16
}

func fragmentsOf(ev *trace.Event) fragmentKey {
	return fragmentKey{ev.Tuple.Src.Addr(), ev.Tuple.Dst.Addr(), ev.Tuple.Protocol, ev.ID}
}

// fragments are datagrams that were sent in pieces, oldest first: the first piece
// alone has ports.
type fragments struct {
	known []fragmented
}

type fragmented struct {
	fragmentKey
	path      *path
	direction trace.Direction
	tuple     trace.Tuple
	at        time.Time
}

func (f *fragments) add(p *path, d trace.Direction, ev *trace.Event) {
	if len(f.known) >= maxFragments {
		f.known = f.known[1:]
	}
	f.known = append(f.known, fragmented{fragmentsOf(ev), p, d, ev.Tuple, ev.Time})
}

func (f *fragments) forget(p *path) {
	kept := f.known[:0]
	for _, k := range f.known {
		if k.path != p {
			kept = append(kept, k)
		}
	}
	f.known = kept
}

// find returns the datagram that a fragment belongs to: the very one, else the
// one between the same addresses that was sent last. Not each first fragment is told.
func (f *fragments) find(ev *trace.Event) (fragmented, bool) {
	key := fragmentsOf(ev)
	var alike *fragmented
	for i := len(f.known) - 1; i >= 0; i-- {
		k := &f.known[i]
		if ev.Time.Sub(k.at) > fragmentAge {
			break
		}
		if k.fragmentKey == key && k.path.passes(ev.Netns) {
			return *k, true
		}
		if alike == nil && k.src == key.src && k.dst == key.dst && k.protocol == key.protocol && k.path.passes(ev.Netns) {
			alike = k
		}
	}
	if alike != nil {
		return *alike, true
	}
	return fragmented{}, false
}

// isLost reports a drop that is not the kernel's way of saying that it has done
// with a packet: older kernels free ICMP errors that they took and fragments
// that they put together as if they dropped them, and give no reason.
func isLost(ev *trace.Event) bool {
	if ev.Reason != "" && ev.Reason != "NOT_SPECIFIED" {
		return true
	}
	return strings.HasPrefix(ev.Symbol, "nf_") || strings.HasPrefix(ev.Symbol, "nft_") ||
		strings.HasPrefix(ev.Symbol, "ipt_") || strings.HasPrefix(ev.Symbol, "ip6t_") || strings.HasPrefix(ev.Symbol, "ip_rcv_finish")
}

// passes reports whether a packet of the path was seen in a namespace.
func (p *path) passes(ns trace.Netns) bool {
	through := func(h hop) bool { return h.netns == ns }
	return slices.ContainsFunc(p.request, through) || slices.ContainsFunc(p.reply, through)
}

// addFragmentDrop opens a case about a datagram of which a later fragment was
// dropped: it will never be whole.
func (t *Table) addFragmentDrop(ev *trace.Event) {
	if ev.OtherHost || ev.Group || !isLost(ev) {
		return
	}
	f, ok := t.fragments.find(ev)
	if !ok {
		return
	}
	drop := *ev
	drop.Tuple = f.tuple // NAT is done to whole datagrams: fragments of one have its addresses
	f.path.dropAt(f.direction, &drop)
	if f.path.mayOpen(trace.SymptomDrop, &drop) {
		t.open(f.path, trace.SymptomDrop, f.direction, &drop)
	}
}
