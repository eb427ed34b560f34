package main

import (
	"context"
	"time"

	tracev1 "github.com/replypath/replypath/api/trace/v1"
)

// admitRestart says so when an agent started after the time that the answer is
// about began: what was before is not in its memory, and "ok" would be a guess.
// The answer then is "incomplete", as it is when the agent does not tell.
func (c *connection) admitRestart(ctx context.Context, w *world, since time.Time, a *answer) {
	// Also after Ctrl-C: the answer that stands is still printed.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), dialTimeout)
	defer cancel()
	status, err := c.Status(ctx, &tracev1.StatusRequest{})
	if err != nil {
		w.note("cannot tell whether the agent ran all the time: %v", c.failure(err))
		a.incomplete()
		return
	}
	for _, n := range status.GetNodes() {
		if !n.GetStarted().IsValid() || !n.GetStarted().AsTime().After(since) {
			continue
		}
		at := n.GetStarted().AsTime().In(w.zone).Format("15:04:05")
		if n.GetName() != "" {
			at += " on " + n.GetName()
		}
		w.note("the agent was restarted meanwhile (at %s): what happened before that was not seen", at)
		a.incomplete()
	}
}

// incomplete takes back a verdict that nothing was wrong.
func (a *answer) incomplete() {
	if a.summary.GetVerdict() == "ok" {
		a.summary.Verdict = "incomplete"
	}
}
