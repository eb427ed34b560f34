package main

import (
	"context"
	"errors"
	"io"
	"os/exec"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	tracev1 "github.com/replypath/replypath/api/trace/v1"
	"github.com/replypath/replypath/internal/agent"
	"github.com/replypath/replypath/internal/render"
)

const dnsHelp = `Show DNS queries as they end, like a resolver's log: who asked what of whom, who
answered, with which code, after what time, and which way the query took. Those of
the last five minutes (--since) come first, then what is still to come, until
Ctrl-C (or for --for); then a summary. With -- CMD it runs the command and shows its queries.

Queries over UDP and TCP are followed, on port 53 and on the ports that port 53 is
redirected to (--dns-port names more). mDNS and DNS over TLS are not. A query
counts as unanswered after five seconds. NXDOMAIN is an answer.

Exit: 1 if queries failed (error, late, wrong source, unanswered), 0 if none did, 2
usage, 3 no agent or tracing impossible.` + filterHelp

const dnsExamples = `  replypath dns
  replypath dns --failed --since 10m
  replypath dns --slow 100ms -o json host 10.96.0.10
  replypath dns -- getent hosts www.example.com`

// dnsOptions are the flags and arguments of dns.
type dnsOptions struct {
	since, showFor, slow time.Duration
	failed               bool
	output               format
	filter               string
	command              []string
}

func newDNS(w *world, s *server) *cobra.Command {
	var o dnsOptions
	cmd := &cobra.Command{
		Use:               "dns [FILTER] [-- CMD...]",
		Short:             "Show DNS queries and how they end, or a command's",
		Long:              dnsHelp,
		Example:           dnsExamples,
		GroupID:           groupAsk,
		ValidArgsFunction: w.completeFilter,
		RunE: command(func(cmd *cobra.Command, args []string) error {
			if err := o.take(cmd, args); err != nil {
				return err
			}
			return w.dns(cmd.Context(), s, o)
		}),
	}
	f := cmd.Flags()
	f.DurationVar(&o.since, "since", defaultSince, "how far back to look")
	f.DurationVar(&o.showFor, "for", 0, "end by itself after this time")
	f.DurationVar(&o.slow, "slow", 0, "show only queries that took this long, or got no answer")
	f.BoolVar(&o.failed, "failed", false, "show only queries that failed")
	f.Var((*agent.PortList)(&s.dnsPorts), "dns-port", "without an agent: a port that DNS is spoken on, beside 53 and those that 53 is redirected to; may be given more than once")
	o.output.flag(cmd)
	return cmd
}

func (o *dnsOptions) take(cmd *cobra.Command, args []string) error {
	words := args
	if dash := cmd.ArgsLenAtDash(); dash >= 0 {
		words, o.command = args[:dash], args[dash:]
		if len(o.command) == 0 {
			return usagef("no command after --")
		}
		for _, flag := range []string{"since", "for"} {
			if cmd.Flags().Changed(flag) {
				return usagef("--%s has no meaning with a command: it is traced from start to end", flag)
			}
		}
	}
	switch f := cmd.Flags(); {
	case f.Changed("for") && o.showFor <= 0:
		return usagef("--for takes a time above zero")
	case o.since < 0 || o.slow < 0:
		return usagef("--since and --slow take a time, not a negative one")
	}
	var err error
	o.filter, err = parseFilter(words)
	return err
}

// shows reports whether a query is to be shown; all are counted.
func (o *dnsOptions) shows(q *tracev1.DnsQuery) bool {
	if o.failed && !render.IsFailure(q.GetOutcome()) {
		return false
	}
	return o.slow == 0 || q.GetLatencySeconds() >= o.slow.Seconds() || q.GetLatencySeconds() == 0 && render.IsFailure(q.GetOutcome())
}

func (w *world) dns(ctx context.Context, s *server, o dnsOptions) error {
	asking, stop := w.interruptible(ctx)
	defer stop()
	var program string
	if len(o.command) > 0 {
		var err error
		if program, err = exec.LookPath(o.command[0]); err != nil {
			return usagef("run %q: %w", o.command[0], innermost(err))
		}
	}
	conn, err := s.connect(asking)
	if err != nil {
		return err
	}
	defer conn.close()
	out := &queryPrinter{printer: w.printer(o.output), options: &o, tally: newTally()}
	from := time.Now()
	q := &tracev1.DnsRequest{Filter: o.filter}
	if program != "" {
		err = w.dnsOfCommand(asking, conn, program, q, out)
	} else {
		from = from.Add(-o.since)
		q.Since, q.Follow = timestamppb.New(from), true
		err = w.dnsLive(asking, conn, q, out)
	}
	if err != nil && !errors.Is(err, syscall.EPIPE) {
		return err
	}
	last, again := w.interruptible(ctx)
	defer again()
	if err := out.conclude(last, conn, from); err != nil && !errors.Is(err, syscall.EPIPE) {
		return err
	}
	if out.tally.failed() > 0 {
		return errFault
	}
	return nil
}

// dnsLive shows queries until the user, or --for, ends it.
func (w *world) dnsLive(ctx context.Context, conn *connection, q *tracev1.DnsRequest, out *queryPrinter) error {
	if d := out.options.showFor; d > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, d)
		defer cancel()
	}
	stream, err := conn.Queries(ctx, q)
	if err != nil {
		return conn.failure(err)
	}
	w.noteWatching()
	if err := out.read(stream); err != nil && !isOver(ctx, err) {
		if errors.Is(err, syscall.EPIPE) {
			return err
		}
		return conn.gone(err)
	}
	return nil
}

// dnsOfCommand runs a command and shows its queries. Those of a daemon that asks for it are shown where a filter says which.
func (w *world) dnsOfCommand(ctx context.Context, conn *connection, program string, q *tracev1.DnsRequest, out *queryPrinter) error {
	run, err := w.execute(ctx, program, out.options.command)
	if err != nil {
		return usagef("run %q: %w", out.options.command[0], innermost(err))
	}
	if run.ended != "" {
		w.note("%s", run.ended)
	}
	// What the command gave up is known when it is seen to have exited.
	select {
	case <-time.After(settleTime / 2):
	case <-ctx.Done():
	}
	ctx = context.WithoutCancel(ctx)
	q.Since, q.ProcessGroup = timestamppb.New(run.start), run.group
	if err := out.ask(ctx, conn, q); err != nil || out.tally.queries > 0 {
		return err
	}
	if out.options.filter == "" {
		w.note("no DNS query of %s was seen: another process may have made it", out.options.command[0])
		return nil
	}
	w.note("no DNS query of %s itself matched the filter; this is all that matched it while %s ran", out.options.command[0], out.options.command[0])
	q.ProcessGroup = 0
	return out.ask(ctx, conn, q)
}

// queryPrinter writes queries, and counts them.
type queryPrinter struct {
	*printer
	options *dnsOptions
	tally   *tally
	losses  []*tracev1.Loss
}

// ask asks once for what is kept.
func (p *queryPrinter) ask(ctx context.Context, conn *connection, q *tracev1.DnsRequest) error {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	stream, err := conn.Queries(ctx, q)
	if err != nil {
		return conn.failure(err)
	}
	switch err := p.read(stream); {
	case err == nil, errors.Is(err, syscall.EPIPE):
		return err
	default:
		return conn.failure(err)
	}
}

// read writes what comes until the stream ends.
func (p *queryPrinter) read(stream grpc.ServerStreamingClient[tracev1.DnsResponse]) error {
	for {
		m, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		switch r := m.GetResult().(type) {
		case *tracev1.DnsResponse_Queries:
			for _, q := range r.Queries.GetQueries() {
				if err := p.query(q); err != nil {
					return err
				}
			}
		case *tracev1.DnsResponse_LostEvents:
			p.losses = addLoss(p.losses, &tracev1.Loss{Cause: r.LostEvents.GetCause(), Count: r.LostEvents.GetCount()})
		case *tracev1.DnsResponse_End:
			for _, l := range r.End.GetLosses() {
				p.losses = addLoss(p.losses, l)
			}
		}
	}
}

func (p *queryPrinter) query(q *tracev1.DnsQuery) error {
	p.tally.add(q)
	if !p.options.shows(q) {
		return nil
	}
	if p.json {
		return p.named("query", q)
	}
	line := p.text.Query(q)
	if !p.written {
		line = p.text.QueryHead() + line
	}
	return p.paragraph(line, false)
}

// conclude writes the summary.
func (p *queryPrinter) conclude(ctx context.Context, conn *connection, from time.Time) error {
	err := p.ask(ctx, conn, &tracev1.DnsRequest{Since: timestamppb.New(from), LossesOnly: true})
	if err != nil {
		return err
	}
	s := p.tally.summary()
	s.Losses = p.losses
	for _, l := range s.Losses {
		s.LostEvents += l.GetCount()
	}
	if p.json {
		return p.named("summary", s)
	}
	return p.paragraph(p.text.DNSSummary(s), true)
}
