package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sync/singleflight"
	"golang.org/x/sys/unix"

	"github.com/replypath/replypath/internal/netfilter"
	"github.com/replypath/replypath/internal/netstate"
	"github.com/replypath/replypath/pkg/trace"
)

// Bounds of tracing rules.
const (
	// tracePatience is how long a drop is waited for: TCP sends a SYN or SYN-ACK
	// again after a second (TCP_TIMEOUT_INIT), and what is queued comes on top.
	tracePatience = 2500 * time.Millisecond
	maxTraces     = 64 // in one process
)

// ruleTracer has nftables trace packets like one that netfilter dropped. It is
// the one part of an agent that adds something to a host, for the user who asked for it.
type ruleTracer struct {
	places *netstate.Directory
	tell   func(string)

	flights singleflight.Group
	mu      sync.Mutex
	known   map[answerKey]*netfilter.TracedDrop // nil: nothing was told
}

func newRuleTracer(places *netstate.Directory, tell func(string)) *ruleTracer {
	return &ruleTracer{places: places, tell: tell, known: map[answerKey]*netfilter.TracedDrop{}}
}

// confirm lets the state hold the one rule that nftables says to have dropped a
// packet like the question's, if it says so.
func (r *ruleTracer) confirm(ctx context.Context, q *trace.Question, c *trace.Case, s *trace.HostState) {
	d := r.ask(ctx, q, c)
	if d == nil {
		return
	}
	is := func(v trace.FilterVerdict) bool {
		return v.Backend != "iptables-legacy" && v.Family == d.Family && v.Table == d.Table && v.Chain == d.Chain &&
			v.Handle == d.Handle && v.Policy == (d.Handle == 0)
	}
	v := trace.FilterVerdict{Hook: q.Filters[0], Backend: "nft", Family: d.Family, Table: d.Table, Chain: d.Chain, Handle: d.Handle, Policy: d.Handle == 0}
	if i := slices.IndexFunc(s.Filters, is); i >= 0 {
		v = s.Filters[i]
	}
	v.Certain, v.Traced = true, true
	s.Filters = []trace.FilterVerdict{v} // not in place: others hold the same answer
}

// ask traces once for each kind of question.
func (r *ruleTracer) ask(ctx context.Context, q *trace.Question, c *trace.Case) *netfilter.TracedDrop {
	key := keyOf(q)
	v, _, _ := r.flights.Do(fmt.Sprint(key), func() (any, error) {
		r.mu.Lock()
		d, ok := r.known[key]
		full := len(r.known) >= maxTraces
		r.mu.Unlock()
		if ok || full {
			return d, nil
		}
		d, err := r.trace(ctx, q, tuplesOf(q, c))
		if err != nil && !errors.Is(err, context.DeadlineExceeded) {
			r.tell(fmt.Sprintf("rules of %s cannot be traced: %v", placeText(q.Place), err))
		}
		if errors.Is(err, context.DeadlineExceeded) {
			r.tell(fmt.Sprintf("nftables dropped no packet like it in %s within %v (it does not trace iptables-legacy)", placeText(q.Place), tracePatience))
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		r.known[key] = d
		return d, nil
	})
	return v.(*netfilter.TracedDrop)
}

// trace switches tracing on, waits for the packet that comes next, and switches it off.
func (r *ruleTracer) trace(ctx context.Context, q *trace.Question, tuples []trace.Tuple) (*netfilter.TracedDrop, error) {
	handle, err := r.places.Open(q.Place.Netns)
	if err != nil {
		return nil, err
	}
	defer handle.Close()
	tracer, err := traceIn(handle, tuples, q.In, slices.Contains(q.Filters, trace.Ingress))
	if err != nil {
		return nil, err
	}
	defer tracer.Close()
	texts := make([]string, len(tuples))
	for i, t := range tuples {
		texts[i] = t.String()
	}
	r.tell(fmt.Sprintf("tracing rules in %s for %s: added table %s (removed when done, or when this process ends)", placeText(q.Place), strings.Join(texts, ", "), netfilter.TraceTable))
	ctx, cancel := context.WithTimeout(ctx, tracePatience)
	defer cancel()
	for {
		d, err := tracer.Drop(ctx)
		if err != nil {
			return nil, err
		}
		if slices.Contains(tuples, d.Tuple) {
			return &d, nil
		}
	}
}

// traceIn opens a tracer in a namespace.
func traceIn(handle netns.NsHandle, tuples []trace.Tuple, in uint32, ingress bool) (tracer *netfilter.Tracer, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		own, errOwn := netns.Get()
		if errOwn != nil {
			err = errOwn
			runtime.UnlockOSThread()
			return
		}
		defer own.Close()
		if err = unix.Setns(int(handle), unix.CLONE_NEWNET); err != nil {
			runtime.UnlockOSThread()
			return
		}
		var devices []string
		if ingress {
			if name := netfilter.DeviceName(in); name != "" {
				devices = []string{name}
			}
		}
		tracer, err = netfilter.Trace(tuples, devices)
		if unix.Setns(int(own), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		} // else the thread ends with this goroutine
	}()
	<-done
	return tracer, err
}

// tuplesOf are the tuples that the packet may have at the hooks of its way: NAT
// may have changed it between them.
func tuplesOf(q *trace.Question, c *trace.Case) []trace.Tuple {
	var out []trace.Tuple
	candidates := []trace.Tuple{q.Packet, c.Arrival.Tuple}
	if q.Conntrack.Known() {
		if q.Conntrack.Info < 3 { // of the original direction
			candidates = append(candidates, q.Conntrack.Original, q.Conntrack.Reply.Reverse())
		} else {
			candidates = append(candidates, q.Conntrack.Reply, q.Conntrack.Original.Reverse())
		}
	}
	for _, t := range candidates {
		if t.IsValid() && t.Src != (netip.AddrPort{}) && !slices.Contains(out, t) {
			out = append(out, t)
		}
	}
	return out
}

// placeText names a namespace for a note.
func placeText(p trace.Place) string {
	switch {
	case p.Name != "":
		return p.Name
	case p.Host:
		return "this host's own namespace"
	}
	return fmt.Sprintf("network namespace %d", p.Netns)
}
