package main

import (
	"context"
	"errors"
	"syscall"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	tracev1 "github.com/replypath/replypath/api/trace/v1"
)

func newWatch(w *world, s *server) *cobra.Command {
	var output format
	var flows bool
	cmd := &cobra.Command{
		Use:   "watch [FILTER]",
		Short: "Show findings as they are made",
		Long: `Show findings as they are made, until Ctrl-C. With --flows also a line for each
connection that ends its handshake or fails it. What several agents (--server A,B)
tell is joined, as explain does: that takes a second or two more.

Exit: 1 if findings were shown, 0 if none, 3 if the agent went away.` + filterHelp,
		Example:           "  replypath watch\n  replypath watch --flows tcp and port 443\n  replypath watch -o json 'net 10.0.0.0/8 and not port 53'",
		GroupID:           groupAsk,
		ValidArgsFunction: w.completeFilter,
		RunE: command(func(cmd *cobra.Command, args []string) error {
			text, err := parseFilter(args)
			if err != nil {
				return err
			}
			ctx, stop := w.interruptible(cmd.Context())
			defer stop()
			conn, err := s.connect(ctx)
			if err != nil {
				return err
			}
			defer conn.close()
			stream, err := conn.Watch(ctx, &tracev1.WatchRequest{Filter: text, Flows: flows})
			if err != nil {
				return conn.failure(err)
			}
			w.noteWatching()
			return conn.follow(ctx, stream, w.printer(output), nil)
		}),
	}
	output.flag(cmd)
	cmd.Flags().BoolVar(&flows, "flows", false, "also show connections without a fault")
	return cmd
}

// noteWatching tells somebody who sits there that silence is no trouble.
func (w *world) noteWatching() {
	if _, tty := w.terminal(w.stderr); tty {
		w.note("watching; Ctrl-C to stop")
	}
}

// follow prints a live stream until the context ends. A finding that stands in
// shown, with its count, is told again only when it has grown.
func (c *connection) follow(ctx context.Context, stream grpc.ServerStreamingClient[tracev1.WatchResponse], p *printer, shown map[string]uint32) error {
	if shown == nil {
		shown = make(map[string]uint32)
	}
	for {
		m, err := stream.Recv()
		switch {
		case err == nil:
			err = p.live(m, shown)
		case !isOver(ctx, err):
			return c.gone(err)
		}
		switch {
		case err == nil:
		case isOver(ctx, err), errors.Is(err, syscall.EPIPE): // the user has seen enough
			if len(shown) > 0 {
				return errFault
			}
			return nil
		default:
			return err
		}
	}
}

// isOver reports whether a stream ended because its context did. The timer of
// gRPC may be ahead of the context's own.
func isOver(ctx context.Context, err error) bool {
	_, bounded := ctx.Deadline()
	return ctx.Err() != nil || bounded && status.Code(err) == codes.DeadlineExceeded
}

func (p *printer) live(m *tracev1.WatchResponse, shown map[string]uint32) error {
	switch r := m.GetResult().(type) {
	case *tracev1.WatchResponse_Finding:
		return p.grown(r.Finding, shown)
	case *tracev1.WatchResponse_Path:
		return p.path(r.Path)
	case *tracev1.WatchResponse_LostEvents:
		return p.lost(r.LostEvents)
	}
	return nil
}

// grown prints a finding that is new in full. One that is known gets a line of
// text each time its count has doubled: a fault may last for hours. JSON has
// every change.
func (p *printer) grown(f *tracev1.Finding, shown map[string]uint32) error {
	key := identity(f)
	before, known := shown[key]
	switch n := f.GetCount(); {
	case known && n == before:
		return nil
	case p.json, !known, n < before: // less: the agent had forgotten it, and it came back
		shown[key] = n
		return p.finding(f)
	case uint64(n) < 2*uint64(before):
		return nil
	default:
		shown[key] = n
		return p.paragraph(p.text.Again(f), false)
	}
}

// gone says that a live stream ended before the user ended it.
func (c *connection) gone(err error) error {
	told := c.failure(err)
	var exit *exitError
	if errors.As(told, &exit) && exit.code == exitUsage {
		return told // it never began: the agent refused the filter
	}
	return noAgentf("the agent went away: %w", told)
}
