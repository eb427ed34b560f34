// Package metrics shows the agent's counters to Prometheus and its health to
// whoever supervises it. Nothing is counted here: the counters are read from
// their owners when they are asked for.
//
// No address, port, process or name that traffic can choose is ever a label (but for the names
// of DNS queries, where the user asks for them),
// and the series of each metric are capped, so that no traffic can fill a
// Prometheus.
package metrics

import (
	"fmt"
	"io"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
)

// Metric describes one metric, for the collector and for docs/metrics.md.
type Metric struct {
	Name   string
	Type   string // "counter", "gauge" or "histogram"
	Labels []string
	Help   string
}

// The metrics' places in the catalogue.
const (
	buildInfo = iota
	events
	lostEvents
	drops
	cases
	findings
	pathsLive
	hooksAttached
	recorderBytes
	recorderFindings
	recorderPaths
	recorderForgotten
	dnsQueries
	dnsResponses
	dnsLatency
	dnsUnanswered
	dnsNames
	metricCount
)

var catalogue = [metricCount]Metric{
	buildInfo:         {"replypath_build_info", "gauge", []string{"version", "goversion"}, "The agent's version; the value is always 1."},
	events:            {"replypath_events_total", "counter", []string{"hook"}, "Events read from the kernel, by hook."},
	lostEvents:        {"replypath_lost_events_total", "counter", []string{"cause"}, "Events and answers lost, by cause."},
	drops:             {"replypath_drops_total", "counter", []string{"reason"}, "Packets that the kernel dropped, by its reason; the reasons after the first 64 count as other."},
	cases:             {"replypath_cases_total", "counter", nil, "Cases opened: paths that came under suspicion."},
	findings:          {"replypath_findings_total", "counter", []string{"id", "direction"}, "Cases that were diagnosed, by finding and direction."},
	pathsLive:         {"replypath_paths_live", "gauge", nil, "Paths that are being followed."},
	hooksAttached:     {"replypath_hooks_attached", "gauge", []string{"hook"}, "Whether a hook is attached (1) or not (0)."},
	recorderBytes:     {"replypath_recorder_bytes", "gauge", nil, "Memory that kept findings and paths hold, as estimated."},
	recorderFindings:  {"replypath_recorder_findings", "gauge", nil, "Findings kept."},
	recorderPaths:     {"replypath_recorder_paths", "gauge", nil, "Paths kept."},
	recorderForgotten: {"replypath_recorder_forgotten_total", "counter", []string{"kind"}, "Findings, paths and DNS queries given up before their time because memory was full."},
	dnsQueries:        {"replypath_dns_queries_total", "counter", nil, "DNS queries that have ended, answered or not."},
	dnsResponses:      {"replypath_dns_responses_total", "counter", []string{"rcode"}, "DNS queries that got a response, late ones included, by its code."},
	dnsLatency:        {"replypath_dns_latency_seconds", "histogram", nil, "Time from a DNS query to its response, as the client's namespace saw it."},
	dnsUnanswered:     {"replypath_dns_unanswered_total", "counter", []string{"stage"}, "DNS queries without a response from who was asked within five seconds, by where query or response was last seen."},
	dnsNames:          {"replypath_dns_name_queries_total", "counter", []string{"name"}, "DNS queries by name, of the names that were asked first; only with --metrics-dns-names."},
}

// Describe lists the metrics of the agent itself, in the order of the documentation.
func Describe() []Metric { return append([]Metric(nil), catalogue[:]...) }

// WriteDocs writes the metrics as a Markdown table.
func WriteDocs(w io.Writer) error {
	var b strings.Builder
	b.WriteString("| metric | type | labels | says |\n| --- | --- | --- | --- |\n")
	for _, m := range catalogue {
		labels := "-"
		if len(m.Labels) > 0 {
			labels = "`" + strings.Join(m.Labels, "`, `") + "`"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", m.Name, m.Type, labels, m.Help)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// descriptor returns what the Prometheus library calls the metric by.
func (m Metric) descriptor() *prometheus.Desc {
	return prometheus.NewDesc(m.Name, m.Help, m.Labels, nil)
}

// valueType returns the library's name for the type.
func (m Metric) valueType() prometheus.ValueType {
	if m.Type == "counter" {
		return prometheus.CounterValue
	}
	return prometheus.GaugeValue
}
