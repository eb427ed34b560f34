package main

import (
	"cmp"
	"maps"
	"math"
	"slices"

	tracev1 "github.com/replypath/replypath/api/trace/v1"
	"github.com/replypath/replypath/internal/render"
)

const (
	// maxTalliedNames bounds what is remembered of names; those that come later count as other.
	maxTalliedNames = 10_000
	otherNames      = "other"
	topNames        = 5
	// latencyStep is how exact percentiles are: 2%.
	latencyStep = 1.02
)

// tally counts queries.
type tally struct {
	queries, answered uint64
	failures, rcodes  map[string]uint64
	names             map[string]uint64
	latencies         map[int]uint64 // by logarithm
	measured          uint64
	open              map[uint64]string // outcome of queries that may be told again with another
}

func newTally() *tally {
	return &tally{
		failures: make(map[string]uint64), rcodes: make(map[string]uint64), names: make(map[string]uint64),
		latencies: make(map[int]uint64), open: make(map[uint64]string),
	}
}

// add counts a query. One that is told again is counted as it ended at last.
func (t *tally) add(q *tracev1.DnsQuery) {
	if before, again := t.open[q.GetNumber()]; again {
		t.uncount(before)
	} else {
		t.queries++
		t.addName(q.GetName())
	}
	delete(t.open, q.GetNumber())
	switch outcome := q.GetOutcome(); {
	case render.IsFailure(outcome):
		t.failures[outcome]++
	case outcome == "answered":
		t.answered++
	}
	if o := q.GetOutcome(); (o == "unanswered" || o == "wrong_source" || o == "cancelled") && len(t.open) < maxTalliedNames {
		t.open[q.GetNumber()] = o
	}
	if q.GetRcode() != "" && q.GetOutcome() != "wrong_source" {
		t.rcodes[q.GetRcode()]++
	}
	if s := q.GetLatencySeconds(); s > 0 && q.GetOutcome() != "wrong_source" {
		t.latencies[int(math.Ceil(math.Log(s)/math.Log(latencyStep)))]++
		t.measured++
	}
}

func (t *tally) uncount(outcome string) {
	if t.failures[outcome] > 0 {
		if t.failures[outcome]--; t.failures[outcome] == 0 {
			delete(t.failures, outcome)
		}
	}
}

func (t *tally) addName(name string) {
	if _, known := t.names[name]; !known && len(t.names) >= maxTalliedNames {
		name = otherNames
	}
	t.names[name]++
}

func (t *tally) failed() uint64 {
	n := uint64(0)
	for _, f := range t.failures {
		n += f
	}
	return n
}

// percentile returns the latency in seconds that a share of the responses did not exceed.
func (t *tally) percentile(share float64) float64 {
	left := uint64(math.Ceil(share * float64(t.measured)))
	for _, step := range slices.Sorted(maps.Keys(t.latencies)) {
		if n := t.latencies[step]; n < left {
			left -= n
			continue
		}
		return math.Pow(latencyStep, float64(step))
	}
	return 0
}

func (t *tally) summary() *tracev1.DnsSummary {
	s := &tracev1.DnsSummary{
		Queries: t.queries, Answered: t.answered, Failures: t.failures, Rcodes: t.rcodes,
		LatencyP50Seconds: t.percentile(0.5), LatencyP95Seconds: t.percentile(0.95), LatencyP99Seconds: t.percentile(0.99),
	}
	names := slices.SortedFunc(maps.Keys(t.names), func(a, b string) int {
		return cmp.Or(cmp.Compare(t.names[b], t.names[a]), cmp.Compare(a, b))
	})
	for _, name := range names[:min(len(names), topNames)] {
		s.TopNames = append(s.TopNames, &tracev1.DnsName{Name: name, Queries: t.names[name]})
	}
	return s
}
