package main

import (
	"context"
	"errors"
	"io"
	"strings"
	"time"

	tracev1 "github.com/replypath/replypath/api/trace/v1"
	"github.com/replypath/replypath/pkg/trace/filter"
)

// answer is a whole answer of an agent.
type answer struct {
	findings []*tracev1.Finding
	paths    []*tracev1.Path
	summary  *tracev1.Summary
}

// exit is what the answer means for the exit code.
func (a *answer) exit() error {
	if len(a.findings) > 0 {
		return errFault
	}
	return nil
}

// seen reports whether the answer tells of any connection.
func (a *answer) seen() bool {
	return len(a.findings)+len(a.paths) > 0 || a.summary.GetPaths() > 0
}

// connections counts those that the answer tells of: in paths and in findings.
// Those that a finding does not list may be among the paths, and are not added.
func (a *answer) connections() uint32 {
	type connection struct{ protocol, client, server string }
	seen := make(map[connection]bool)
	for _, p := range a.paths {
		seen[connection{p.GetProtocol(), p.GetClient(), p.GetServer()}] = true
	}
	for _, f := range a.findings {
		p := f.GetPath()
		seen[connection{p.GetProtocol(), p.GetClient(), p.GetServer()}] = true
		for _, c := range f.GetConnections() {
			seen[connection{c.GetProtocol(), c.GetClient(), c.GetServer()}] = true
		}
	}
	return uint32(len(seen))
}

// pending reports whether a connection still waits for its reply.
func (a *answer) pending() bool {
	for _, p := range a.paths {
		if !p.GetAnswered() {
			return true
		}
	}
	return false
}

// ask asks an agent once, for at most answerTimeout.
func (c *connection) ask(ctx context.Context, q *tracev1.ExplainRequest) (*answer, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	stream, err := c.Explain(ctx, q)
	if err != nil {
		return nil, c.failure(err)
	}
	a := new(answer)
	for {
		m, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF) && a.summary == nil:
			return nil, noAgentf("the agent at %s broke off its answer", c.server)
		case errors.Is(err, io.EOF):
			return a, nil
		case err != nil:
			return nil, c.failure(err)
		}
		switch r := m.GetResult().(type) {
		case *tracev1.ExplainResponse_Finding:
			a.findings = append(a.findings, r.Finding)
		case *tracev1.ExplainResponse_Path:
			a.paths = append(a.paths, r.Path)
		case *tracev1.ExplainResponse_Summary:
			a.summary = r.Summary
		}
	}
}

// parseFilter joins the words of a FILTER and checks it before anything is asked.
func parseFilter(words []string) (string, error) {
	text := strings.TrimSpace(strings.Join(words, " "))
	if _, err := filter.Parse(text); err != nil {
		return "", &exitError{exitUsage, err}
	}
	return text, nil
}

// Faults show with a delay: a reply counts as missing after 200 ms, and the
// kernel takes 3 s to give a neighbour up.
const (
	pollInterval = 250 * time.Millisecond
	settleTime   = 2 * time.Second // for the last fault to show
	pendingTime  = 5 * time.Second // while more is to be expected
)

// patience is how long to ask for findings that have not come.
type patience struct {
	settle  time.Duration
	pending time.Duration // while more is to be expected
}

var usualPatience = patience{settle: settleTime, pending: pendingTime}

// settled asks again and again, until there is a finding or none can be
// expected any more; more reports whether an answer leads to expect one.
func (p patience) settled(ctx context.Context, ask func(context.Context) (*answer, error), more func(*answer) bool) (*answer, error) {
	start := time.Now()
	var last *answer
	for found := false; ; {
		a, err := ask(ctx)
		switch {
		case err != nil && last != nil && ctx.Err() != nil:
			return last, nil // interrupted: what is known by now
		case err != nil:
			return nil, err
		}
		last = a
		waited := time.Since(start)
		switch {
		case found: // one more round, for what belongs to the same moment
			return a, nil
		case len(a.findings) > 0:
			found = true
		case waited >= p.pending, waited >= p.settle && !more(a):
			return a, nil
		}
		select {
		case <-time.After(pollInterval):
		case <-ctx.Done():
			return a, nil
		}
	}
}
