package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"
	"google.golang.org/protobuf/types/known/timestamppb"

	tracev1 "github.com/replypath/replypath/api/trace/v1"
	"github.com/replypath/replypath/internal/lab"
	"github.com/replypath/replypath/pkg/trace"
)

const labRunHelp = `Build a lab, make its connections, explain what became of them, and remove
everything again, also on Ctrl-C. Only the lab's own connections are told.

Exit: 1 if there are findings (a healthy lab has none). With --all, each lab is
run, a line tells what it should give and what it gave, and the exit code is 0
if all labs gave what they should.`

func newLabRun(w *world, s *server) *cobra.Command {
	var output format
	var every bool
	var jobs int
	var match string
	cmd := &cobra.Command{
		Use:     "run NAME | --all",
		Short:   "Build a lab, explain it, remove it",
		Long:    labRunHelp,
		Example: "  sudo replypath lab run dsr-no-route\n  sudo replypath lab run -o json dsr-healthy\n  sudo replypath lab run --all --jobs 4",
		Args: func(cmd *cobra.Command, args []string) error {
			if every = every || slices.Equal(args, []string{"all"}); every {
				if len(args) > 1 || len(args) == 1 && args[0] != "all" {
					return usagef("either a lab or --all")
				}
				return nil
			}
			return oneLab(cmd, args)
		},
		ValidArgsFunction: completeLab,
		RunE: command(func(cmd *cobra.Command, args []string) error {
			if jobs < 1 {
				return usagef("--jobs takes a number above zero")
			}
			ctx, stop := w.interruptible(cmd.Context())
			defer stop()
			if every && s.traceRules {
				return usagef("--trace-rules is for one lab")
			}
			if every {
				labs, err := matchingLabs(match)
				if err != nil {
					return err
				}
				if err := w.rootOnly(); err != nil {
					return err
				}
				return w.runLabs(ctx, s, w.buildable(labs), jobs, output)
			}
			return w.runLab(ctx, s, args[0], output)
		}),
	}
	output.flag(cmd)
	s.traceRulesFlag(cmd)
	cmd.Flags().BoolVar(&every, "all", false, "run each lab and tell whether it gave what it should")
	cmd.Flags().StringVar(&match, "match", "", "with --all, only labs whose name and finding, as lab list shows them, match this regular expression")
	cmd.Flags().IntVar(&jobs, "jobs", 4, "with --all, how many labs at a time")
	return cmd
}

// matchingLabs returns the labs whose name and finding match.
func matchingLabs(expression string) ([]lab.Lab, error) {
	re, err := regexp.Compile(expression)
	if err != nil {
		return nil, usagef("--match: %v", err)
	}
	labs := slices.DeleteFunc(lab.All(), func(l lab.Lab) bool { return !re.MatchString(l.Name + " " + expectation(l)) })
	if len(labs) == 0 {
		return nil, usagef("--match: no lab matches %q", expression)
	}
	return labs, nil
}

// runLab runs one lab and explains it.
func (w *world) runLab(ctx context.Context, s *server, name string, output format) error {
	l, err := w.chosenLab(name)
	if err != nil {
		return err
	}
	conn, err := s.connect(ctx)
	if err != nil {
		return err
	}
	defer conn.close()
	w.note("lab %s: %s", l.Name, l.Title)
	r, err := w.labResult(ctx, conn, l, w.stderr)
	switch {
	case err != nil:
		return err
	case ctx.Err() != nil:
		return noAgentf("interrupted")
	}
	p := w.printer(output)
	p.text.Trim = r.prefix()
	if p.text.Trim != "" {
		w.note("its namespaces are %s*", p.text.Trim)
	}
	w.note("its client was told: %s", r.outcome)
	if len(r.answer.findings) > 0 {
		r.answer.paths = nil // the findings tell of them
	}
	return p.whole(r.answer)
}

// labResult is what a lab gave.
type labResult struct {
	lab        lab.Lab
	namespaces map[string]string // by host
	outcome    lab.Outcome
	answer     *answer
}

// faultPatience is for a fault that is known to be there, on whatever machine: an emulated one takes ten times as long.
var faultPatience = patience{settle: 20 * time.Second, pending: 20 * time.Second}

// labResult builds the lab, makes its traffic, explains it and removes it,
// whatever happens. What is done to the lab's hosts is logged; log may be nil.
func (w *world) labResult(ctx context.Context, conn *connection, l lab.Lab, log io.Writer) (r *labResult, err error) {
	start := time.Now()
	n, err := lab.Up(ctx, l, log)
	if err != nil {
		return nil, noAgentf("%w", err)
	}
	defer func() {
		if down := n.Down(); down != nil {
			err = noAgentf("%w", errors.Join(err, fmt.Errorf("remove lab %s: %w", l.Name, down)))
		}
	}()
	if err := n.Traffic(ctx); err != nil {
		if ctx.Err() != nil {
			return nil, noAgentf("interrupted")
		}
		return nil, noAgentf("lab %s: %w", l.Name, err)
	}
	r = &labResult{lab: l, namespaces: n.Namespaces(), outcome: n.Outcome()}
	q := &tracev1.ExplainRequest{Since: timestamppb.New(start), All: true}
	wait := usualPatience
	if !l.Healthy() {
		wait = faultPatience
	}
	r.answer, err = wait.settled(ctx, func(ctx context.Context) (*answer, error) {
		whole, err := conn.ask(ctx, q)
		if err != nil {
			return nil, err
		}
		return r.own(whole), nil
	}, (*answer).pending)
	if err != nil {
		return nil, err
	}
	conn.admitRestart(ctx, w, start, r.answer)
	return r, nil
}

// own keeps of an answer what is about the lab's namespaces.
func (r *labResult) own(whole *answer) *answer {
	names := make(map[string]bool, len(r.namespaces))
	for _, name := range r.namespaces {
		names[name] = true
	}
	through := func(p *tracev1.Path) bool {
		inLab := func(h *tracev1.Hop) bool { return names[h.GetNetns()] }
		return slices.ContainsFunc(p.GetRequest(), inLab) || slices.ContainsFunc(p.GetReply(), inLab)
	}
	own := new(answer)
	for _, f := range whole.findings {
		if names[f.GetWhere().GetNetns()] || through(f.GetPath()) {
			own.findings = append(own.findings, f)
		}
	}
	for _, p := range whole.paths {
		if through(p) {
			own.paths = append(own.paths, p)
		}
	}
	lost := whole.summary
	own.summary = &tracev1.Summary{
		Verdict: "ok", Paths: own.connections(), Findings: uint32(len(own.findings)),
		LostEvents: lost.GetLostEvents(), Losses: lost.GetLosses(), Nodes: lost.GetNodes(),
	}
	switch {
	case len(own.findings) > 0:
		own.summary.Verdict = "fault"
	case lost.GetLostEvents() > 0:
		own.summary.Verdict = "incomplete"
	}
	return own
}

// lost is how many events were lost since the lab came up.
func (r *labResult) lost() uint32 {
	if r == nil {
		return 0
	}
	return r.answer.summary.GetLostEvents()
}

// prefix is what the names of the lab's namespaces have in common.
func (r *labResult) prefix() string {
	for host, name := range r.namespaces {
		return strings.TrimSuffix(name, host)
	}
	return ""
}

// got tells what the lab gave: "none", or each finding with its direction and host.
func (r *labResult) got() string {
	var told []string
	for _, f := range r.answer.findings {
		at := strings.TrimPrefix(f.GetWhere().GetNetns(), r.prefix())
		told = append(told, fmt.Sprintf("%s %s at %s", f.GetId(), f.GetDirection(), at))
	}
	if len(told) == 0 {
		told = append(told, "none")
	}
	if !r.lab.Outcome.Fits(r.outcome) {
		told = append(told, fmt.Sprintf("client %s instead of %s", r.outcome, r.lab.Outcome))
	}
	return strings.Join(told, ", ")
}

// confidence is the lowest of the lab's findings; "" when it gave none.
func (r *labResult) confidence() string {
	var lowest trace.Confidence
	for _, f := range r.answer.findings {
		for _, c := range []trace.Confidence{trace.Possible, trace.Likely, trace.Certain} {
			if f.GetConfidence() == c.String() && (lowest == 0 || c < lowest) {
				lowest = c
			}
		}
	}
	if lowest == 0 {
		return ""
	}
	return lowest.String()
}

// wanted tells what a lab must give, in the form of got.
func wanted(l lab.Lab) string {
	if l.Healthy() {
		return "none"
	}
	return fmt.Sprintf("%s %s at %s", l.Finding, direction(l.Direction), l.Where)
}

func direction(d trace.Direction) tracev1.Direction {
	return tracev1.Direction(tracev1.Direction_value[d.String()])
}

// labVerdict is one line of `lab run --all`.
type labVerdict struct {
	Lab      string `json:"lab"`
	Expected string `json:"expected"`
	Got      string `json:"got"`
	OK       bool   `json:"ok"`

	Finding    string `json:"finding,omitempty"`    // the id that it must give; "" when it is healthy
	Confidence string `json:"confidence,omitempty"` // of the finding that it gave, the lowest of several
}

func (v labVerdict) print(w *world, output format, name int) error {
	if output == formatJSON {
		return json.NewEncoder(w.stdout).Encode(map[string]labVerdict{"lab": v})
	}
	if v.OK {
		_, err := fmt.Fprintf(w.stdout, "ok    %-*s  %s\n", name, v.Lab, v.Got)
		return err
	}
	_, err := fmt.Fprintf(w.stdout, "WRONG %-*s  expected %s, got %s\n", name, v.Lab, v.Expected, v.Got)
	return err
}

// runLabs runs labs, several at a time, and tells of each whether it gave what it should.
func (w *world) runLabs(ctx context.Context, s *server, labs []lab.Lab, jobs int, output format) error {
	conn, err := s.connect(ctx)
	if err != nil {
		return err
	}
	defer conn.close()
	name := 0
	for _, l := range labs {
		name = max(name, len(l.Name))
	}
	var group errgroup.Group
	slots := semaphore.NewWeighted(int64(jobs))
	var mu sync.Mutex // of stdout and wrong
	wrong := 0
	for _, l := range labs {
		weight := min(l.Weight(), int64(jobs))
		if slots.Acquire(ctx, weight) != nil {
			break // interrupted
		}
		group.Go(func() error {
			defer slots.Release(weight)
			v := labVerdict{Lab: l.Name, Expected: wanted(l), Finding: l.Finding}
			r, err := w.labResult(ctx, conn, l, nil)
			if err != nil {
				v.Got = err.Error()
			} else {
				v.Got, v.Confidence = r.got(), r.confidence()
			}
			v.OK = v.Got == v.Expected
			if lost := r.lost(); lost > 0 && !v.OK {
				v.Got += fmt.Sprintf("; %d events were lost", lost)
			}
			mu.Lock()
			defer mu.Unlock()
			if !v.OK {
				wrong++
			}
			return v.print(w, output, name)
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return noAgentf("interrupted")
	}
	w.note("%d of %d labs gave what they should", len(labs)-wrong, len(labs))
	if wrong > 0 {
		return errFault
	}
	return nil
}
