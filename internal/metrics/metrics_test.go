package metrics

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/replypath/replypath/internal/recorder"
)

// fixed is a source whose counters the test sets.
type fixed struct {
	mu    sync.Mutex
	stats Stats
}

func (f *fixed) Stats() Stats {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.stats
}

func pedantic(source Source) *prometheus.Registry {
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(NewCollector(source))
	return registry
}

// full has something in every metric.
func full() Stats {
	return Stats{
		Version: "v0.1.0",
		Events:  map[string]uint64{"kfree_skb": 12, "netif_receive_skb": 7},
		Lost:    map[string]uint64{"ring_full": 3},
		Drops:   map[string]uint64{"NO_SOCKET": 4, "NETFILTER_DROP": 5},
		Cases:   9,
		Findings: map[Finding]uint64{
			{"reply-no-route", "REPLY"}:   2,
			{"netfilter-drop", "REQUEST"}: 1,
			{"netfilter-drop", "REPLY"}:   6,
		},
		Live:     11,
		Hooks:    map[string]bool{"kfree_skb": true, "icmp_send": false},
		Recorder: recorder.Stats{Findings: 2, Paths: 13, Bytes: 4096, FindingsForgotten: 1, PathsForgotten: 8, ExchangesForgotten: 2},
		DNS:      fullDNS(),
	}
}

// fullDNS has three responses: at once, after a lost packet, and too late for any bucket.
func fullDNS() DNS {
	d := NewDNS()
	d.Queries, d.Responses["NOERROR"], d.Responses["SERVFAIL"], d.Unanswered["resolver_received"], d.Names["www.test."] = 5, 2, 1, 2, 5
	for _, seconds := range []float64{0.001, 5.003, 12} {
		d.Observe(seconds)
	}
	return d
}

// TestExposition compares the whole text.
func TestExposition(t *testing.T) {
	const want = `
# HELP replypath_build_info The agent's version; the value is always 1.
# TYPE replypath_build_info gauge
replypath_build_info{goversion="GOVERSION",version="v0.1.0"} 1
# HELP replypath_cases_total Cases opened: paths that came under suspicion.
# TYPE replypath_cases_total counter
replypath_cases_total 9
# HELP replypath_dns_latency_seconds Time from a DNS query to its response, as the client's namespace saw it.
# TYPE replypath_dns_latency_seconds histogram
replypath_dns_latency_seconds_bucket{le="0.0005"} 0
replypath_dns_latency_seconds_bucket{le="0.001"} 1
replypath_dns_latency_seconds_bucket{le="0.0025"} 1
replypath_dns_latency_seconds_bucket{le="0.005"} 1
replypath_dns_latency_seconds_bucket{le="0.01"} 1
replypath_dns_latency_seconds_bucket{le="0.025"} 1
replypath_dns_latency_seconds_bucket{le="0.05"} 1
replypath_dns_latency_seconds_bucket{le="0.1"} 1
replypath_dns_latency_seconds_bucket{le="0.25"} 1
replypath_dns_latency_seconds_bucket{le="0.5"} 1
replypath_dns_latency_seconds_bucket{le="1"} 1
replypath_dns_latency_seconds_bucket{le="2"} 1
replypath_dns_latency_seconds_bucket{le="4.5"} 1
replypath_dns_latency_seconds_bucket{le="5.5"} 2
replypath_dns_latency_seconds_bucket{le="10"} 2
replypath_dns_latency_seconds_bucket{le="+Inf"} 3
replypath_dns_latency_seconds_sum 17.004
replypath_dns_latency_seconds_count 3
# HELP replypath_dns_name_queries_total DNS queries by name, of the names that were asked first; only with --metrics-dns-names.
# TYPE replypath_dns_name_queries_total counter
replypath_dns_name_queries_total{name="www.test."} 5
# HELP replypath_dns_queries_total DNS queries that have ended, answered or not.
# TYPE replypath_dns_queries_total counter
replypath_dns_queries_total 5
# HELP replypath_dns_responses_total DNS queries that got a response, late ones included, by its code.
# TYPE replypath_dns_responses_total counter
replypath_dns_responses_total{rcode="NOERROR"} 2
replypath_dns_responses_total{rcode="SERVFAIL"} 1
# HELP replypath_dns_unanswered_total DNS queries without a response from who was asked within five seconds, by where query or response was last seen.
# TYPE replypath_dns_unanswered_total counter
replypath_dns_unanswered_total{stage="resolver_received"} 2
# HELP replypath_drops_total Packets that the kernel dropped, by its reason; the reasons after the first 64 count as other.
# TYPE replypath_drops_total counter
replypath_drops_total{reason="NETFILTER_DROP"} 5
replypath_drops_total{reason="NO_SOCKET"} 4
# HELP replypath_events_total Events read from the kernel, by hook.
# TYPE replypath_events_total counter
replypath_events_total{hook="kfree_skb"} 12
replypath_events_total{hook="netif_receive_skb"} 7
# HELP replypath_findings_total Cases that were diagnosed, by finding and direction.
# TYPE replypath_findings_total counter
replypath_findings_total{direction="REPLY",id="netfilter-drop"} 6
replypath_findings_total{direction="REPLY",id="reply-no-route"} 2
replypath_findings_total{direction="REQUEST",id="netfilter-drop"} 1
# HELP replypath_hooks_attached Whether a hook is attached (1) or not (0).
# TYPE replypath_hooks_attached gauge
replypath_hooks_attached{hook="icmp_send"} 0
replypath_hooks_attached{hook="kfree_skb"} 1
# HELP replypath_lost_events_total Events and answers lost, by cause.
# TYPE replypath_lost_events_total counter
replypath_lost_events_total{cause="ring_full"} 3
# HELP replypath_paths_live Paths that are being followed.
# TYPE replypath_paths_live gauge
replypath_paths_live 11
# HELP replypath_recorder_bytes Memory that kept findings and paths hold, as estimated.
# TYPE replypath_recorder_bytes gauge
replypath_recorder_bytes 4096
# HELP replypath_recorder_findings Findings kept.
# TYPE replypath_recorder_findings gauge
replypath_recorder_findings 2
# HELP replypath_recorder_forgotten_total Findings, paths and DNS queries given up before their time because memory was full.
# TYPE replypath_recorder_forgotten_total counter
replypath_recorder_forgotten_total{kind="dns_query"} 2
replypath_recorder_forgotten_total{kind="finding"} 1
replypath_recorder_forgotten_total{kind="path"} 8
# HELP replypath_recorder_paths Paths kept.
# TYPE replypath_recorder_paths gauge
replypath_recorder_paths 13
`
	registry := pedantic(&fixed{stats: full()})
	if err := testutil.GatherAndCompare(registry, strings.NewReader(strings.ReplaceAll(want, "GOVERSION", runtime.Version()))); err != nil {
		t.Error(err)
	}
	problems, err := testutil.GatherAndLint(registry)
	if err != nil || len(problems) > 0 {
		t.Errorf("lint: %v, %v", problems, err)
	}
	if got, err := testutil.GatherAndCount(pedantic(&fixed{})); err != nil || got != 11 {
		t.Errorf("without any counts: %d series, %v", got, err)
	}
}

// TestSeriesCapped: counters may move neither into nor out of "other".
func TestSeriesCapped(t *testing.T) {
	source := &fixed{}
	registry := pedantic(source)
	grow := func(first, last int, count uint64) {
		counts := make(map[string]uint64)
		for reason, n := range source.stats.Drops {
			counts[reason] = n
		}
		for i := first; i < last; i++ {
			counts[fmt.Sprintf("REASON_%03d", i)] = count
		}
		source.stats.Drops = counts
	}
	previous := map[string]float64{}
	check := func(wantSeries int, wantOther float64) {
		t.Helper()
		got := gather(t, registry, "replypath_drops_total")
		if len(got) != wantSeries || got["other"] != wantOther {
			t.Errorf("%d series, other %v; want %d and %v", len(got), got["other"], wantSeries, wantOther)
		}
		for reason, value := range previous {
			if got[reason] < value {
				t.Errorf("%s went from %v to %v", reason, value, got[reason])
			}
		}
		previous = got
	}
	grow(200, 260, 1)
	check(60, 0)
	grow(0, 20, 1) // these sort before the ones that are there: 4 get in
	check(65, 16)
	grow(0, 20, 3)
	check(65, 48)
	grow(300, 1000, 1)
	check(65, 748)
}

// gather returns the values of a metric by its only label.
func gather(t *testing.T, registry prometheus.Gatherer, name string) map[string]float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	values := make(map[string]float64)
	for _, family := range families {
		if family.GetName() == name {
			for _, m := range family.GetMetric() {
				values[m.GetLabel()[0].GetValue()] = m.GetCounter().GetValue()
			}
		}
	}
	return values
}

// TestHostileLabels: a label that is not UTF-8 must not make the scrape fail.
func TestHostileLabels(t *testing.T) {
	source := &fixed{stats: Stats{Drops: map[string]uint64{"A\xff": 1, "A\xfe": 2, "other": 5, "": 1, "a\"\n": 1}}}
	got := gather(t, pedantic(source), "replypath_drops_total")
	if got["A\uFFFD"] != 3 || got["other"] != 5 || len(got) != 4 {
		t.Errorf("%v", got)
	}
}

func TestConcurrentScrapes(t *testing.T) {
	registry := NewRegistry(&fixed{stats: full()})
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			for range 20 {
				if _, err := registry.Gather(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
}

// TestDocs: what is documented is what is exposed, and the table is well formed.
func TestDocs(t *testing.T) {
	var docs bytes.Buffer
	if err := WriteDocs(&docs); err != nil {
		t.Fatal(err)
	}
	documented := make(map[string]bool)
	for _, m := range Describe() {
		if documented[m.Name] {
			t.Errorf("%s is listed twice", m.Name)
		}
		documented[m.Name] = true
		if !regexp.MustCompile(`^replypath_[a-z_]+$`).MatchString(m.Name) || !strings.HasSuffix(m.Help, ".") {
			t.Errorf("%+v", m)
		}
		if (m.Type == "counter") != strings.HasSuffix(m.Name, "_total") {
			t.Errorf("%s is a %s", m.Name, m.Type)
		}
		if !strings.Contains(docs.String(), "| `"+m.Name+"` | "+m.Type+" |") {
			t.Errorf("%s is not in the documentation", m.Name)
		}
	}
	families, err := pedantic(&fixed{stats: full()}).Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if !documented[family.GetName()] {
			t.Errorf("%s is exposed and not documented", family.GetName())
		}
	}
	if len(families) != len(documented) {
		t.Errorf("%d exposed, %d documented", len(families), len(documented))
	}
	if lines := strings.Count(docs.String(), "\n"); lines != len(documented)+2 {
		t.Errorf("the table has %d lines", lines)
	}
}

func TestServer(t *testing.T) {
	notReady := errors.New("hooks are not attached")
	var mu sync.Mutex
	server, err := NewServer("127.0.0.1:0", Handler(NewRegistry(&fixed{stats: full()}), func() error {
		mu.Lock()
		defer mu.Unlock()
		return notReady
	}))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx) }()
	base := "http://" + server.Address().String()

	expect := func(method, path string, code int, body string) {
		t.Helper()
		request, err := http.NewRequest(method, base+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = response.Body.Close() }()
		got, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		if response.StatusCode != code || !strings.Contains(string(got), body) {
			t.Errorf("%s %s: %d %.200q, want %d %q", method, path, response.StatusCode, got, code, body)
		}
	}
	expect("GET", "/healthz", 200, "ok\n")
	expect("GET", "/readyz", 503, "hooks are not attached\n")
	mu.Lock()
	notReady = nil
	mu.Unlock()
	expect("GET", "/readyz", 200, "ok\n")
	expect("GET", "/metrics", 200, `replypath_findings_total{direction="REPLY",id="reply-no-route"} 2`)
	expect("GET", "/metrics", 200, "process_resident_memory_bytes ")
	expect("HEAD", "/healthz", 200, "")
	expect("POST", "/metrics", 405, "")
	expect("GET", "/", 404, "")
	expect("GET", "/debug/pprof/", 404, "")

	if _, err := NewServer(server.Address().String(), nil); err == nil ||
		err.Error() != "listen on "+server.Address().String()+" for metrics: bind: address already in use" {
		t.Errorf("an address in use: %v", err)
	}
	cancel()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("it does not stop")
	}
	if _, err := http.Get(base + "/healthz"); err == nil {
		t.Error("it still answers")
	}
}

func TestServerClose(t *testing.T) {
	server, err := NewServer("127.0.0.1:0", http.NotFoundHandler())
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(server.Close(), server.Close()); err != nil {
		t.Error(err)
	}
	if _, err := NewServer("nonsense", nil); err == nil || strings.Contains(err.Error(), "\n") {
		t.Errorf("a bad address: %v", err)
	}
}
