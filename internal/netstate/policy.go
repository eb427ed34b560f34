package netstate

import (
	"context"

	"golang.org/x/sys/unix"

	"github.com/replypath/replypath/pkg/trace"
)

// readPolicy finds the routing rule that decides where the packet goes, and
// where table main alone would have sent it. A VRF's own table is no policy.
func (r *reading) readPolicy(ctx context.Context, state *trace.HostState) error {
	f := flowOf(r.q.Packet, r.q.Mark, r.in)
	way, err := r.fib.walk(ctx, f)
	if err != nil || !way.Found() || r.fib.chosen.l3mdev {
		return err
	}
	switch way.Table {
	case unix.RT_TABLE_MAIN, unix.RT_TABLE_LOCAL, unix.RT_TABLE_DEFAULT:
		return nil
	}
	main, found, err := r.fib.longest(ctx, unix.RT_TABLE_MAIN, f)
	if err != nil {
		return err
	}
	state.Policy = trace.Policy{Rule: r.fib.chosen.String(), Way: way, Main: trace.Lookup{Done: true, Errno: unix.ENETUNREACH}}
	if found {
		state.Policy.Main = main.lookup(r.names)
	}
	return nil
}
