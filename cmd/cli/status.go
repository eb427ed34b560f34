package main

import (
	"context"

	"github.com/spf13/cobra"

	tracev1 "github.com/replypath/replypath/api/trace/v1"
	"github.com/replypath/replypath/internal/render"
)

func newStatus(w *world, s *server) *cobra.Command {
	var output format
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Say what the agent can see, and what it has lost",
		Long: `Say what the agent can see, and what it has lost: kernel, tier, each hook with
its state and why it is not attached, events read and lost by cause.

With -o json, one {"node":{…}} a line.`,
		Example: "  replypath status\n  replypath status -o json | jq .node.hooks",
		GroupID: groupAsk,
		Args:    cobra.NoArgs,
		RunE: command(func(cmd *cobra.Command, _ []string) error {
			ctx, stop := w.interruptible(cmd.Context())
			defer stop()
			return w.status(ctx, s, output)
		}),
	}
	output.flag(cmd)
	return cmd
}

func (w *world) status(ctx context.Context, s *server, output format) error {
	conn, err := s.connect(ctx)
	if err != nil {
		return err
	}
	defer conn.close()
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	r, err := conn.Status(ctx, &tracev1.StatusRequest{})
	if err != nil {
		return conn.failure(err)
	}
	if output == formatText {
		_, err = w.stdout.Write([]byte(w.text().Status(r.GetNodes())))
		return err
	}
	for _, n := range r.GetNodes() {
		line, err := render.NodeJSON(n)
		if err != nil {
			return err
		}
		if _, err := w.stdout.Write(line); err != nil {
			return err
		}
	}
	return nil
}
