package main

import (
	"strings"
	"testing"

	tracev1 "github.com/replypath/replypath/api/trace/v1"
	"github.com/replypath/replypath/internal/lab"
	"github.com/replypath/replypath/pkg/trace"
)

func through(netns ...string) *tracev1.Path {
	p := &tracev1.Path{Protocol: "tcp", Client: strings.Join(netns, "+")}
	for _, name := range netns {
		p.Request = append(p.Request, &tracev1.Hop{Netns: name})
	}
	return p
}

// TestLabKeepsItsOwn mixes the answer about a lab with that about other traffic of the machine.
func TestLabKeepsItsOwn(t *testing.T) {
	l := lab.Lab{Name: "l", Finding: "reply-no-route", Direction: trace.Reply, Where: "be", Outcome: lab.Timeout}
	r := &labResult{lab: l, outcome: lab.Timeout, namespaces: map[string]string{"cl": "rplab-l-1234-cl", "be": "rplab-l-1234-be"}}
	finding := func(id, netns string, p *tracev1.Path) *tracev1.Finding {
		return &tracev1.Finding{Id: id, Direction: tracev1.Direction_REPLY, Where: &tracev1.Where{Netns: netns}, Path: p}
	}
	whole := &answer{
		findings: []*tracev1.Finding{
			finding("reply-no-route", "rplab-l-1234-be", through("rplab-l-1234-cl", "rplab-l-1234-be")),
			finding("reply-no-route", "rplab-l-ffff-be", through("rplab-l-ffff-cl")),
			finding("port-not-listening", "", through()),
		},
		paths:   []*tracev1.Path{through("rplab-l-1234-cl"), through("other"), through()},
		summary: &tracev1.Summary{Verdict: "fault", Paths: 3, Findings: 3, LostEvents: 7, Nodes: 1},
	}
	r.answer = r.own(whole)
	s := r.answer.summary
	if len(r.answer.findings) != 1 || len(r.answer.paths) != 1 || s.GetPaths() != 2 || s.GetFindings() != 1 || s.GetLostEvents() != 7 || s.GetVerdict() != "fault" {
		t.Errorf("kept %v", r.answer)
	}
	if got, want := r.got(), "reply-no-route REPLY at be"; got != want || got != wanted(l) {
		t.Errorf("got %q, wanted(l) %q, want %q", got, wanted(l), want)
	}

	whole.findings = whole.findings[1:]
	r.answer, r.outcome = r.own(whole), lab.Connected
	if got, want := r.got(), "none, client connected instead of timeout"; got != want || r.answer.summary.GetVerdict() != "incomplete" {
		t.Errorf("got %q, want %q; verdict %s", got, want, r.answer.summary.GetVerdict())
	}
}
