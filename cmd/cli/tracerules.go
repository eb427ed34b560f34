package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/replypath/replypath/internal/netfilter"
)

const traceRulesHelp = "have nftables itself name the rule that drops packets: adds a rule there for a moment"

func (s *server) traceRulesFlag(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&s.traceRules, "trace-rules", false, traceRulesHelp)
}

// embedTracingRules runs an agent in this process that may trace rules: one that
// others ask too must not add any.
func (s *server) embedTracingRules(ctx context.Context) (*connection, error) {
	switch {
	case s.named:
		return nil, usagef("--trace-rules traces in this process, and so does not go with --server")
	case s.world.euid() != 0:
		return nil, noAgentf("--trace-rules adds nftables rules, and that takes root: run this with sudo")
	}
	if err := netfilter.CanTrace(); err != nil {
		if errors.Is(err, netfilter.ErrNoOwner) {
			err = netfilter.ErrNoOwner
		}
		return nil, noAgentf("--trace-rules is not possible here: %w", err)
	}
	s.world.note("--trace-rules: tracing in this process; where netfilter drops a packet, tables %s are added for some seconds, whose rules only mark packets like it for tracing", netfilter.TraceTable)
	return s.embed(ctx)
}
