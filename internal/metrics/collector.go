package metrics

import (
	"maps"
	"runtime"
	"slices"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/replypath/replypath/internal/recorder"
)

// Stats are the agent's counters at one moment. Counters run from its start and never go down.
type Stats struct {
	Version  string
	Events   map[string]uint64 // read from the kernel, by hook
	Lost     map[string]uint64 // by cause
	Drops    map[string]uint64 // by the kernel's reason
	Cases    uint64            // opened
	Findings map[Finding]uint64
	Live     int             // paths being followed
	Hooks    map[string]bool // attached or not, by name
	Recorder recorder.Stats
	DNS      DNS
}

// Finding is what findings are counted by.
type Finding struct {
	ID        string
	Direction string // "REQUEST" or "REPLY"
}

// Source gives the counters. It is called for each scrape, from several goroutines.
type Source interface {
	Stats() Stats
}

// Collector reads a Source at each scrape.
type Collector struct {
	source      Source
	descriptors [metricCount]*prometheus.Desc
	series      [metricCount]series
}

// NewCollector returns a collector for a registry of the caller's.
func NewCollector(source Source) *Collector {
	c := &Collector{source: source}
	for i, m := range catalogue {
		c.descriptors[i] = m.descriptor()
	}
	return c
}

// NewRegistry returns a registry of its own, which checks what it gathers,
// with the agent's metrics and the usual ones of its process and of Go.
func NewRegistry(source Source) *prometheus.Registry {
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(NewCollector(source),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), collectors.NewGoCollector())
	return registry
}

// Describe implements prometheus.Collector.
func (c *Collector) Describe(descriptors chan<- *prometheus.Desc) {
	for _, d := range c.descriptors {
		descriptors <- d
	}
}

// Collect implements prometheus.Collector.
func (c *Collector) Collect(metrics chan<- prometheus.Metric) {
	s := c.source.Stats()
	one := func(metric int, value float64, labels ...string) {
		metrics <- prometheus.MustNewConstMetric(c.descriptors[metric], catalogue[metric].valueType(), value, labels...)
	}
	many := func(metric int, counts map[key]uint64) {
		folded := c.series[metric].fold(counts)
		for _, k := range slices.SortedFunc(maps.Keys(folded), compareKeys) {
			one(metric, float64(folded[k]), k[:len(catalogue[metric].Labels)]...)
		}
	}
	many(buildInfo, map[key]uint64{{s.Version, runtime.Version()}: 1})
	many(events, keyed(s.Events))
	many(lostEvents, keyed(s.Lost))
	many(drops, keyed(s.Drops))
	one(cases, float64(s.Cases))
	many(findings, keyedFindings(s.Findings))
	one(pathsLive, float64(s.Live))
	many(hooksAttached, keyedHooks(s.Hooks))
	one(recorderBytes, float64(s.Recorder.Bytes))
	one(recorderFindings, float64(s.Recorder.Findings))
	one(recorderPaths, float64(s.Recorder.Paths))
	one(recorderForgotten, float64(s.Recorder.FindingsForgotten), "finding")
	one(recorderForgotten, float64(s.Recorder.PathsForgotten), "path")
	one(recorderForgotten, float64(s.Recorder.ExchangesForgotten), "dns_query")
	one(dnsQueries, float64(s.DNS.Queries))
	many(dnsResponses, keyed(s.DNS.Responses))
	metrics <- s.DNS.histogram(c.descriptors[dnsLatency])
	many(dnsUnanswered, keyed(s.DNS.Unanswered))
	many(dnsNames, keyed(s.DNS.Names))
}

func keyed(counts map[string]uint64) map[key]uint64 {
	out := make(map[key]uint64, len(counts))
	for label, count := range counts {
		out[key{label}] = count
	}
	return out
}

func keyedFindings(counts map[Finding]uint64) map[key]uint64 {
	out := make(map[key]uint64, len(counts))
	for f, count := range counts {
		out[key{f.ID, f.Direction}] = count
	}
	return out
}

func keyedHooks(hooks map[string]bool) map[key]uint64 {
	out := make(map[key]uint64, len(hooks))
	for name, attached := range hooks {
		out[key{name}] = 0
		if attached {
			out[key{name}] = 1
		}
	}
	return out
}
