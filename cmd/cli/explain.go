package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	tracev1 "github.com/replypath/replypath/api/trace/v1"
)

const (
	defaultSince = 5 * time.Minute
	defaultFor   = 10 * time.Second
)

const explainHelp = `Explain what became of connections: the request path and the reply path hop by
hop, where the packets were lost, why, how to mend it and how to verify that.

Without a command it tells of the last five minutes (--since), or with --follow
of what is still to come. Where no agent runs, root's replypath traces for ten
seconds (--for) and then explains.

With -- CMD it runs the command in a process group of its own, and explains what
happened to the command's connections. The command keeps stdin; its output goes
to stderr, so that stdout holds the explanation alone. Its exit status is told
and does not change replypath's. The first Ctrl-C ends the command, not the
explanation. Where the command made no connection itself (a daemon may have made
it), a FILTER names those to explain instead. Of several agents (--server A,B) one has to be this machine's own.

Exit: 0 no fault found, 1 findings, 2 usage, 3 no agent or tracing impossible.` + filterHelp

const explainExamples = `  replypath explain host 203.0.113.80 and port 80
  replypath explain --since 30s --all 'tcp and (port 80 or port 443)'
  replypath explain -o json net 10.0.0.0/8 | jq .finding.id
  replypath explain -- curl -m 3 http://203.0.113.80/
  sudo replypath explain port 443 -- git fetch`

// explainOptions are explain's flags and arguments.
type explainOptions struct {
	since, traceFor time.Duration // traceFor 0: not given
	sinceGiven      bool
	follow, all     bool
	output          format
	filter          string
	command         []string // after --
}

func newExplain(w *world, s *server) *cobra.Command {
	var o explainOptions
	cmd := &cobra.Command{
		Use:               "explain [FILTER] [-- CMD...]",
		Short:             "Explain what became of connections, or of a command's",
		Long:              explainHelp,
		Example:           explainExamples,
		GroupID:           groupAsk,
		ValidArgsFunction: w.completeFilter,
		RunE: command(func(cmd *cobra.Command, args []string) error {
			if err := o.take(cmd, args); err != nil {
				return err
			}
			if s.traceRules && len(o.command) == 0 && !o.follow {
				return usagef("--trace-rules needs a command after --, or --follow: it traces what is still to come")
			}
			return w.explain(cmd.Context(), s, o)
		}),
	}
	f := cmd.Flags()
	f.DurationVar(&o.since, "since", defaultSince, "how far back to look")
	f.BoolVarP(&o.follow, "follow", "f", false, "go on with what is still to come, until Ctrl-C")
	f.BoolVarP(&o.all, "all", "a", false, "also show connections without a fault")
	f.DurationVar(&o.traceFor, "for", 0, "trace this long, then explain what was seen (10s where no agent runs)")
	s.traceRulesFlag(cmd)
	o.output.flag(cmd)
	return cmd
}

// take reads the arguments and refuses flags that contradict each other.
func (o *explainOptions) take(cmd *cobra.Command, args []string) error {
	words := args
	if dash := cmd.ArgsLenAtDash(); dash >= 0 {
		words, o.command = args[:dash], args[dash:]
		if len(o.command) == 0 {
			return usagef("no command after --")
		}
		for _, flag := range []string{"since", "for", "follow"} {
			if cmd.Flags().Changed(flag) {
				return usagef("--%s has no meaning with a command: it is traced from start to end", flag)
			}
		}
	}
	o.sinceGiven = cmd.Flags().Changed("since")
	switch f := cmd.Flags(); {
	case f.Changed("for") && o.traceFor <= 0:
		return usagef("--for takes a time above zero")
	case f.Changed("since") && o.since < 0:
		return usagef("--since takes a time, not a negative one")
	case f.Changed("for") && f.Changed("since"):
		return usagef("--since looks back and --for ahead: choose one")
	}
	var err error
	o.filter, err = parseFilter(words)
	return err
}

func (w *world) explain(ctx context.Context, s *server, o explainOptions) error {
	if len(o.command) > 0 {
		return w.explainCommand(ctx, s, o)
	}
	asking, stop := w.interruptible(ctx)
	defer stop()
	conn, err := s.connect(asking)
	if err != nil {
		return err
	}
	defer conn.close()
	from, live := time.Now(), false
	switch {
	case o.follow:
		return w.explainFollow(ctx, asking, conn, o)
	case o.traceFor > 0 || conn.embedded:
		live = true
		if conn.embedded && o.sinceGiven {
			w.note("--since does not apply: nobody traced before this process")
		}
		if err := w.traceFor(asking, conn, o.traceFor); err != nil {
			return err
		}
		// An interrupted trace is still explained; a second Ctrl-C ends that too.
		var again context.CancelFunc
		asking, again = w.interruptible(ctx)
		defer again()
	default:
		from = from.Add(-o.since)
	}
	a, err := conn.ask(asking, &tracev1.ExplainRequest{Filter: o.filter, Since: timestamppb.New(from), All: o.all})
	if err != nil {
		return err
	}
	if live {
		conn.admitRestart(asking, w, from, a)
	}
	return w.printer(o.output).whole(a)
}

// traceFor waits while the agent traces.
func (w *world) traceFor(ctx context.Context, conn *connection, d time.Duration) error {
	if d == 0 {
		d = defaultFor
	}
	w.note("tracing for %v; Ctrl-C to stop early", d)
	select {
	case <-time.After(d):
	case <-ctx.Done():
	case <-conn.died: // nil, and silent, for an agent elsewhere
		return conn.ended()
	}
	return nil
}

// explainFollow tells of the past, then of what comes, and sums up when the user ends it.
func (w *world) explainFollow(ctx, asking context.Context, conn *connection, o explainOptions) error {
	from := time.Now().Add(-o.since)
	if o.traceFor > 0 {
		var cancel context.CancelFunc
		asking, cancel = context.WithTimeout(asking, o.traceFor)
		defer cancel()
		from = time.Now()
	}
	// The stream comes first, so that nothing falls between past and present.
	stream, err := conn.Watch(asking, &tracev1.WatchRequest{Filter: o.filter, Flows: o.all})
	if err != nil {
		return conn.failure(err)
	}
	if _, err := stream.Header(); err != nil { // sent when the stream stands
		return conn.failure(err)
	}
	question := &tracev1.ExplainRequest{Filter: o.filter, Since: timestamppb.New(from), All: o.all}
	past, err := conn.ask(asking, question)
	if err != nil {
		return err
	}
	w.noteWatching()
	p, shown := w.printer(o.output), make(map[string]uint32)
	for _, f := range past.findings {
		shown[identity(f)] = f.GetCount()
		err = errors.Join(err, p.finding(f))
	}
	for _, path := range past.paths {
		err = errors.Join(err, p.path(path))
	}
	switch {
	case errors.Is(err, syscall.EPIPE): // the reader has gone
		return past.exit()
	case err != nil:
		return err
	}
	if err := conn.follow(asking, stream, p, shown); err != nil && !errors.Is(err, errFault) {
		return err
	}
	last, stop := w.interruptible(ctx)
	defer stop()
	whole, err := conn.ask(last, question)
	if err != nil {
		return err
	}
	for _, f := range whole.findings { // what several agents told while they were being asked
		if _, known := shown[identity(f)]; !known {
			shown[identity(f)] = f.GetCount()
			if err := p.finding(f); err != nil && !errors.Is(err, syscall.EPIPE) {
				return err
			}
		}
	}
	if err := p.summary(whole); err != nil && !errors.Is(err, syscall.EPIPE) {
		return err
	}
	if len(shown) > 0 {
		return errFault
	}
	return whole.exit()
}

// identity is what makes two messages tell of one finding (trace.Finding).
func identity(f *tracev1.Finding) string {
	at := f.GetWhere()
	key := []string{f.GetId(), f.GetDirection().String(), at.GetNode(), at.GetNetns(), fmt.Sprint(at.GetNetnsInode())}
	return strings.Join(append(key, f.GetFix()...), "\x00")
}

// completeFilter offers the words of the filter language, and files after --.
func (w *world) completeFilter(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	if slices.Contains(w.args, "--") { // cobra does not tell where the dash stood
		return nil, cobra.ShellCompDirectiveDefault
	}
	return []string{"host", "net", "port", "portrange", "src", "dst", "tcp", "udp", "icmp", "icmp6", "ip", "ip6", "and", "or", "not"},
		cobra.ShellCompDirectiveNoFileComp
}
