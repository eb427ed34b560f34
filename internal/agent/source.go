package agent

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"github.com/replypath/replypath/internal/metrics"
	"github.com/replypath/replypath/internal/netstate"
	"github.com/replypath/replypath/internal/probe"
	"github.com/replypath/replypath/internal/recorder"
	"github.com/replypath/replypath/internal/stream"
	"github.com/replypath/replypath/internal/version"
)

// agent is a running agent: what its services answer from.
type agent struct {
	node         string
	started      time.Time
	log          *slog.Logger
	places       *netstate.Directory
	reader       *netstate.Reader
	recorder     *recorder.Recorder
	probe        *probe.Probe
	investigator *investigator
	pipeline     *pipeline
	lossLog      stream.LossLog
	tasks        []task
	closers      []func() error
	ready        atomic.Bool
}

// close undoes newAgent, last opened first.
func (a *agent) close() {
	a.ready.Store(false)
	var errs []error
	for i := len(a.closers) - 1; i >= 0; i-- {
		errs = append(errs, a.closers[i]())
	}
	if a.recorder != nil {
		a.recorder.Close()
	}
	if err := errors.Join(errs...); err != nil {
		a.log.Warn("stop", "err", err)
	}
}

// settleTimeout bounds how long an answer waits for cases that are open.
const settleTimeout = 2 * time.Second

// Settle implements stream.Source.
func (a *agent) Settle(ctx context.Context) error {
	bounded, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	a.pipeline.settle(bounded)
	return ctx.Err()
}

// Recorder implements stream.Source.
func (a *agent) Recorder() *recorder.Recorder { return a.recorder }

// Losses implements stream.Source.
func (a *agent) Losses(since time.Time) []stream.Loss {
	a.lossLog.Observe(time.Now(), a.pipeline.losses())
	return a.lossLog.Since(since)
}

// Status implements stream.Source.
func (a *agent) Status() stream.Status {
	s := stream.Status{
		Node: a.node, Version: version.String(), Kernel: kernelRelease(), Tier: string(a.probe.Tier()),
		Events: a.probe.Events(), Started: a.started, Live: int(a.pipeline.livePaths.Load()),
	}
	for _, h := range a.probe.Status() {
		s.Hooks = append(s.Hooks, stream.HookStatus{Name: h.Name, State: string(h.State), Reason: h.Reason, Means: h.Means})
	}
	return s
}

// isReady says whether the agent traces.
func (a *agent) isReady() error {
	if !a.ready.Load() {
		return errors.New("not tracing yet")
	}
	return nil
}

// Stats implements metrics.Source.
func (a *agent) Stats() metrics.Stats {
	s := metrics.Stats{
		Version: version.String(),
		Events:  make(map[string]uint64),
		Lost:    a.pipeline.losses(),
		Drops:   a.pipeline.drops.snapshot(),
		Cases:   a.investigator.cases.Load(),
		Live:    int(a.pipeline.livePaths.Load()),
		Hooks:   make(map[string]bool),

		Findings: a.investigator.findings(),
		Recorder: a.recorder.Stats(),
		DNS:      a.pipeline.queries.snapshot(),
	}
	for h, n := range a.probe.EventsByHook() {
		s.Events[h.String()] = n
	}
	for _, h := range a.probe.Status() {
		_, tracepoint, _ := strings.Cut(h.Name, ":")
		s.Hooks[tracepoint] = h.State == probe.Attached
	}
	return s
}

// lossWatch notes the loss counters at regular intervals, so that an answer can
// tell what was lost in its window.
type lossWatch struct{ agent *agent }

const lossInterval = 2 * time.Second

// String names the task.
func (w *lossWatch) String() string { return "loss watch" }

// Run watches until ctx is done.
func (w *lossWatch) Run(ctx context.Context) error {
	tick := time.NewTicker(lossInterval)
	defer tick.Stop()
	for {
		w.agent.lossLog.Observe(time.Now(), w.agent.pipeline.losses())
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// hookWatch attends to hooks that come and go with modules and with load.
type hookWatch struct{ probe *probe.Probe }

// String names the task.
func (w hookWatch) String() string { return "hook watch" }

// Run watches until ctx is done.
func (w hookWatch) Run(ctx context.Context) error { return w.probe.Watch(ctx) }
