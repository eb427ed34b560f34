package netstate

import (
	"context"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/replypath/replypath/pkg/trace"
)

// maxRoutes bounds the routes that one answer may look through.
const maxRoutes = 50_000

// errTooManyRoutes says that maxRoutes was not enough.
var errTooManyRoutes = errors.New("more routes than can be looked through")

// fib walks the routing rules and tables of a namespace as fib_rules_lookup
// and fib_table_lookup do. The kernel's own lookup is asked first; the walk
// tells what the kernel does not: which route or rule it was that rejected,
// and what the routes say where the lookup's other checks (forwarding off,
// reverse-path filter, a source that is not local) stand before them.
type fib struct {
	rtnl  *socket
	names func(index uint32) string
	// vrf gives the VRF that a device belongs to or is; the zero link: none.
	vrf    func(index uint32) link
	budget int
	rules  map[uint8][]rule
	chosen rule // the rule whose table gave the last walk its answer
}

// rulesOf reads the rules of a family, once, in order of priority.
func (t *fib) rulesOf(ctx context.Context, family uint8) ([]rule, error) {
	if rules, ok := t.rules[family]; ok {
		return rules, nil
	}
	var rules []rule
	var bad error
	err := t.rtnl.exchange(ctx, ruleDump(family), func(b []byte) bool {
		r, err := parseRule(b)
		if err != nil {
			bad = err
			return false
		}
		rules = append(rules, r)
		return len(rules) < maxRoutes
	})
	if err = errors.Join(err, bad); err != nil && !errors.Is(err, nl.ErrDumpInterrupted) {
		return nil, fmt.Errorf("read routing rules: %w", err)
	}
	t.rules[family] = rules
	return rules, nil
}

// asymmetric reports whether rules of the family look at source or input device.
func (t *fib) asymmetric(ctx context.Context, family uint8) (bool, error) {
	rules, err := t.rulesOf(ctx, family)
	for _, r := range rules {
		if r.asymmetric() {
			return true, err
		}
	}
	return false, err
}

// walk finds the route for f. The error is about reading; that there is no
// route is in the lookup's Errno.
func (t *fib) walk(ctx context.Context, f flow) (trace.Lookup, error) {
	rules, err := t.rulesOf(ctx, familyOf(f.dst))
	if err != nil {
		return trace.Lookup{}, err
	}
	miss := trace.Lookup{Done: true, Errno: unix.ENETUNREACH}
	vrf := t.vrfOf(f)
	ruled := f
	if f.oif == vrf.index {
		f.oif = 0 // it chooses the table, not the way out (l3mdev_update_flow)
	}
	for i := 0; i < len(rules); i++ {
		r := rules[i]
		if !r.matches(ruled, t.names, vrf.index != 0) {
			continue
		}
		if kind, errno := r.rejection(); kind != "" {
			return trace.Lookup{Done: true, Errno: errno, Type: kind, Rule: r.String()}, nil
		}
		if r.action == ruleGoto {
			i = jump(rules, i, r.target)
			continue
		}
		if r.action != ruleToTable {
			continue
		}
		table := r.table
		if r.l3mdev {
			table = vrf.vrfTable
		}
		found, ok, err := t.longest(ctx, table, f)
		if err != nil {
			return trace.Lookup{}, err
		}
		if !ok {
			continue
		}
		lookup := found.lookup(t.names)
		if found.kind == unix.RTN_THROW {
			miss.Type, miss.Prefix, miss.Table = lookup.Type, lookup.Prefix, lookup.Table
			continue
		}
		if lookup.Errno == 0 && int32(found.prefix.Bits()) <= r.suppressLength {
			continue
		}
		t.chosen = r
		return lookup, nil
	}
	return miss, nil
}

// vrfOf returns the VRF that the flow's devices belong to.
func (t *fib) vrfOf(f flow) link {
	for _, index := range []uint32{f.oif, f.iif} {
		if index == 0 {
			continue
		}
		if vrf := t.vrf(index); vrf.index != 0 {
			return vrf
		}
	}
	return link{}
}

// jump returns the place before the first rule of at least the target's
// priority after i; a target that is missing is passed over.
func jump(rules []rule, i int, target uint32) int {
	for j := i + 1; j < len(rules); j++ {
		if rules[j].priority == target {
			return j - 1
		}
	}
	return i
}

// longest finds the route of a table that fits f best: longest prefix, then
// longest source prefix (IPv6), then lowest metric.
func (t *fib) longest(ctx context.Context, table uint32, f flow) (best route, found bool, err error) {
	var stop error
	err = t.rtnl.exchange(ctx, routeDump(familyOf(f.dst), table, 0), func(b []byte) bool {
		if t.budget--; t.budget < 0 {
			stop = errTooManyRoutes
			return false
		}
		r, err := parseRoute(b)
		if err != nil {
			stop = err
			return false
		}
		if r.fits(f) && (!found || r.betterThan(best)) {
			best, found = r, true
		}
		return true
	})
	switch {
	case stop != nil:
		return route{}, false, fmt.Errorf("read routing table %s: %w", tableName(table), stop)
	case errors.Is(err, unix.ENOENT): // there is no such table
		return route{}, false, nil
	case err != nil && !errors.Is(err, nl.ErrDumpInterrupted):
		return route{}, false, fmt.Errorf("read routing table %s: %w", tableName(table), err)
	}
	return best, found, nil
}

// nullMetric is that of IPv6's null entry, which older kernels list: it stands for no match.
const nullMetric = ^uint32(0)

// fits reports whether the route may carry f.
func (r route) fits(f flow) bool {
	if !r.prefix.IsValid() || !r.prefix.Contains(f.dst) || r.tos != 0 || r.cloned {
		return false
	}
	if r.kind == unix.RTN_UNREACHABLE && r.metric == nullMetric {
		return false
	}
	if r.from.IsValid() && r.from.Bits() > 0 && !r.from.Contains(f.src) {
		return false
	}
	hop, ok := r.usable()
	return ok && (f.oif == 0 || hop.device == 0 || r.leavesBy(f.oif))
}

// leavesBy reports whether one of the next hops uses the device.
func (r route) leavesBy(device uint32) bool {
	for _, hop := range r.hops {
		if hop.device == device {
			return true
		}
	}
	return false
}

// betterThan compares two routes that both fit.
func (r route) betterThan(other route) bool {
	if a, b := r.prefix.Bits(), other.prefix.Bits(); a != b {
		return a > b
	}
	if a, b := r.from.Bits(), other.from.Bits(); a != b {
		return a > b
	}
	return r.metric < other.metric
}

// lookup turns the route into an answer.
func (r route) lookup(names func(uint32) string) trace.Lookup {
	l := trace.Lookup{
		Done: true, Errno: kindErrors[r.kind], Type: routeKinds[r.kind],
		Prefix: r.prefix, Table: r.table, Source: r.preferred,
	}
	if hop, ok := r.usable(); ok && l.Errno == 0 {
		l.Gateway = hop.gateway
		if hop.device != 0 {
			l.Device = trace.Device{Index: hop.device, Name: names(hop.device)}
		}
	}
	return l
}
