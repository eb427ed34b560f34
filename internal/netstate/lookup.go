package netstate

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/replypath/replypath/pkg/trace"
)

// resolve finds the route for f, apart from the checks that surround a lookup.
//
// The kernel is asked as it would ask itself: as input when the packet came
// in by a device, else as output with its source. IPv4's input lookup also
// fails for other reasons than routes (forwarding is off, reverse-path filter,
// martians), and its output lookup refuses a source that is not local. Then
// the lookup is made without source and device when no routing rule looks at
// them, and else by walking rules and tables.
func (r *reading) resolve(ctx context.Context, f flow) (trace.Lookup, error) {
	faithful := f.iif != 0 || f.dst.Is6() || r.owns(ctx, f.src)
	if faithful {
		lookup, err := r.ask(ctx, f, true)
		if err != nil || lookup.Found() {
			return lookup, err
		}
		if f.iif == 0 || f.dst.Is6() {
			return r.explain(ctx, f, lookup), nil
		}
	}
	asymmetric, err := r.fib.asymmetric(ctx, familyOf(f.dst))
	if err != nil {
		return trace.Lookup{}, err
	}
	if asymmetric {
		return r.fib.walk(ctx, f)
	}
	plain := f
	plain.iif = 0
	lookup, err := r.ask(ctx, plain, false)
	if err != nil || lookup.Found() {
		return lookup, err
	}
	return r.explain(ctx, f, lookup), nil
}

// explain adds to a failed lookup which route or rule made it fail. The
// kernel's errno stands.
func (r *reading) explain(ctx context.Context, f flow, failed trace.Lookup) trace.Lookup {
	walked, err := r.fib.walk(ctx, f)
	switch {
	case err != nil:
		r.unread("rejecting route", err)
		failed.Type = kindOfErrno(failed.Errno)
	case walked.Errno == failed.Errno:
		return walked
	default:
		r.unread("rejecting route", fmt.Errorf("the lookup says %w, rules and tables do not", failed.Errno))
	}
	return failed
}

// kindOfErrno tells the type of route that gives the error, where only one does.
func kindOfErrno(errno unix.Errno) string {
	switch errno {
	case unix.EINVAL:
		return "blackhole"
	case unix.EHOSTUNREACH:
		return "unreachable"
	case unix.EACCES:
		return "prohibit"
	}
	return ""
}

// ask makes one lookup in the kernel. Found routes carry the prefix that
// matched, where the kernel tells it. The error is about asking.
func (r *reading) ask(ctx context.Context, f flow, withSource bool) (trace.Lookup, error) {
	answer, err := r.askRoute(ctx, f, withSource, false)
	var errno unix.Errno
	if errors.As(err, &errno) && lookupErrno(errno) {
		return trace.Lookup{Done: true, Errno: errno}, nil
	}
	if err != nil {
		return trace.Lookup{}, err
	}
	lookup := answer.lookup(r.names)
	lookup.Prefix = netip.Prefix{}
	matched, err := r.askRoute(ctx, f, withSource, true)
	if err == nil {
		lookup.Prefix, lookup.Table = matched.prefix, matched.table
	}
	return r.settle(ctx, f, lookup), nil
}

// settle corrects what the kernel tells of the local table: while IPv4 has no
// rules of its own, tables local and main are one trie, and lookups call it main.
func (r *reading) settle(ctx context.Context, f flow, l trace.Lookup) trace.Lookup {
	if f.dst.Is4() && l.Table == unix.RT_TABLE_MAIN && (l.Type == "local" || l.Type == "broadcast") {
		if rules, err := r.fib.rulesOf(ctx, unix.AF_INET); err == nil && len(rules) <= 3 {
			l.Table = unix.RT_TABLE_LOCAL
		}
	}
	return l
}

// lookupErrno tells the errors that are a lookup's answer from those of asking.
func lookupErrno(errno unix.Errno) bool {
	switch errno {
	case unix.ENETUNREACH, unix.EHOSTUNREACH, unix.EACCES, unix.EINVAL, unix.EXDEV, unix.EAGAIN, unix.ENETDOWN:
		return true
	}
	return false
}

func (r *reading) askRoute(ctx context.Context, f flow, withSource, fib bool) (route, error) {
	var answer route
	var bad error
	err := r.rtnl.exchange(ctx, routeLookup(f, withSource, fib), func(b []byte) bool {
		answer, bad = parseRoute(b)
		return true
	})
	return answer, errors.Join(err, bad)
}

// owns reports whether this host delivers packets to addr to itself, by the
// local type of its route: that covers `ip route add local 203.0.113.0/24 dev lo`.
func (r *reading) owns(ctx context.Context, addr netip.Addr) bool {
	if owned, ok := r.owned[addr]; ok {
		return owned
	}
	answer, err := r.askRoute(ctx, flow{dst: addr, oif: r.vrf.index}, false, false)
	owned := err == nil && delivers(routeKinds[answer.kind])
	r.owned[addr] = owned
	return owned
}

// delivers reports whether a route of this type ends on the host.
func delivers(kind string) bool { return kind == "local" || kind == "anycast" }
