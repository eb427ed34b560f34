package recorder

import (
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/replypath/replypath/pkg/trace"
)

var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// at returns a time some seconds after start.
func at(seconds float64) time.Time { return start.Add(time.Duration(seconds * float64(time.Second))) }

// connection is the n-th client's, to one VIP.
func connection(n int) trace.Tuple {
	client := netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)})
	return trace.Tuple{Protocol: trace.TCP, Src: netip.AddrPortFrom(client, 40000), Dst: netip.MustParseAddrPort("203.0.113.80:80")}
}

// path is the n-th connection's, through a NAT to a backend.
func path(n int, first time.Time) trace.Path {
	c := connection(n)
	behind := c
	behind.Dst = netip.MustParseAddrPort("10.244.1.9:8080")
	return trace.Path{
		Protocol: trace.TCP, Client: c.Src, Server: c.Dst, Connection: c, First: first, Last: first, Requests: 1,
		Process: trace.Process{PID: uint32(n), PGID: uint32(n), Comm: "curl"},
		Request: []trace.Hop{{Place: trace.Place{Netns: 1, Name: "client"}, Tuple: c}, {Place: trace.Place{Netns: 2, Name: "backend"}, Tuple: behind}},
		Reply:   []trace.Hop{{Place: trace.Place{Netns: 2, Name: "backend"}, Tuple: behind.Reverse()}},
	}
}

// finding is one report of a fault for the n-th connection.
func finding(n int, when time.Time) trace.Finding {
	return trace.Finding{
		ID: "reply-no-route", Severity: trace.Error, Confidence: trace.Likely, Direction: trace.Reply,
		Summary: fmt.Sprint("no route to client ", n), Fix: []string{"ip route add default via 10.2.0.1"},
		Where: trace.Where{Place: trace.Place{Netns: 2, Name: "backend"}}, Path: path(n, when),
		Evidence: []trace.Evidence{{Time: when, Text: fmt.Sprint("SYN in from client ", n)}},
		Count:    1, FirstSeen: when, LastSeen: when,
	}
}

// clock is a time that the test sets.
type clock struct{ now time.Time }

func newRecorder(c Config) (*Recorder, *clock) {
	now := &clock{now: start}
	c.Now = func() time.Time { return now.now }
	return New(c), now
}

func TestMerge(t *testing.T) {
	r, _ := newRecorder(Config{})
	r.AddFinding(finding(1, at(0)))
	r.AddFinding(finding(2, at(1)))
	again := finding(1, at(3))
	again.Confidence, again.Summary = trace.Certain, "no route at all"
	r.AddFinding(again)

	findings := r.Findings(time.Time{})
	if len(findings) != 1 {
		t.Fatalf("%d findings, want 1", len(findings))
	}
	f := findings[0]
	if f.Count != 3 || !f.FirstSeen.Equal(at(0)) || !f.LastSeen.Equal(at(3)) {
		t.Errorf("count %d, first %v, last %v", f.Count, f.FirstSeen, f.LastSeen)
	}
	if f.Confidence != trace.Certain || f.Summary != "no route at all" {
		t.Errorf("the more certain report did not win: %v %q", f.Confidence, f.Summary)
	}
	if f.Path.Connection != connection(1) {
		t.Errorf("path of %v, want the first connection's", f.Path.Connection)
	}
	want := []trace.Connection{
		{Tuple: connection(1), Count: 2, Last: at(3)},
		{Tuple: connection(2), Count: 1, Last: at(1)},
	}
	if !slices.Equal(f.Connections, want) {
		t.Errorf("connections %v, want %v", f.Connections, want)
	}
	if len(f.Evidence) != 3 {
		t.Errorf("evidence %v", f.Evidence)
	}
	if s := r.Stats(); s.Findings != 1 || s.FindingsMade != 1 {
		t.Errorf("stats %+v", s)
	}
}

func TestMergeKeepsOthersApart(t *testing.T) {
	changes := map[string]func(*trace.Finding){
		"id":        func(f *trace.Finding) { f.ID = "rp-filter-drop" },
		"direction": func(f *trace.Finding) { f.Direction = trace.Request },
		"namespace": func(f *trace.Finding) { f.Where.Place.Netns = 3 },
		"fault":     func(f *trace.Finding) { f.Fault = "ip route add default via 10.2.0.2" },
	}
	for name, change := range changes {
		r, _ := newRecorder(Config{})
		r.AddFinding(finding(1, at(0)))
		other := finding(2, at(1))
		change(&other)
		r.AddFinding(other)
		if got := len(r.Findings(time.Time{})); got != 2 {
			t.Errorf("another %s: %d findings, want 2", name, got)
		}
	}
}

func TestMergeLowerConfidence(t *testing.T) {
	r, _ := newRecorder(Config{})
	r.AddFinding(finding(1, at(0)))
	weaker := finding(2, at(1))
	weaker.Confidence, weaker.Severity = trace.Possible, trace.Warning
	r.AddFinding(weaker)
	if f := r.Findings(time.Time{})[0]; f.Confidence != trace.Likely || f.Severity != trace.Error || f.Summary != "no route to client 1" {
		t.Errorf("a weaker report won: %v %v %q", f.Confidence, f.Severity, f.Summary)
	}
}

func TestSnapshotsDoNotChange(t *testing.T) {
	r, _ := newRecorder(Config{})
	reported := finding(1, at(0))
	r.AddFinding(reported)
	reported.Path.Request[0].Place.Name = "changed"
	reported.Evidence[0].Text = "changed"
	before := r.Findings(time.Time{})[0]
	r.AddFinding(finding(2, at(1)))
	r.AddFinding(finding(1, at(2)))
	if before.Count != 1 || len(before.Connections) != 1 || before.Connections[0].Count != 1 || len(before.Evidence) != 1 {
		t.Errorf("an earlier answer changed: %+v", before)
	}
	if before.Path.Request[0].Place.Name != "client" || before.Evidence[0].Text == "changed" {
		t.Error("the recorder shares the reporter's slices")
	}
}

func TestEvidenceBounded(t *testing.T) {
	r, _ := newRecorder(Config{})
	for i := range 100 {
		r.AddFinding(finding(i, at(float64(i))))
		r.AddFinding(finding(i, at(float64(i)))) // the same evidence again
	}
	evidence := r.Findings(time.Time{})[0].Evidence
	if len(evidence) != maxEvidence {
		t.Fatalf("%d pieces of evidence", len(evidence))
	}
	for i, e := range evidence {
		want := i
		if i >= maxEvidence/2 {
			want = 100 - maxEvidence + i
		}
		if !e.Time.Equal(at(float64(want))) {
			t.Errorf("evidence %d is of %v, want %v", i, e.Time, at(float64(want)))
		}
	}
}

func TestConnectionsBounded(t *testing.T) {
	r, _ := newRecorder(Config{MaxConnections: 4})
	for i := range 10 {
		r.AddFinding(finding(i, at(float64(i))))
	}
	r.AddFinding(finding(6, at(11))) // met again: 7 is now the oldest
	r.AddFinding(finding(10, at(12)))
	f := r.Findings(time.Time{})[0]
	var clients []byte
	for _, c := range f.Connections {
		clients = append(clients, c.Src.Addr().As4()[3])
	}
	if want := []byte{6, 8, 9, 10}; !slices.Equal(clients, want) {
		t.Errorf("connections of clients %v, want the latest, oldest first: %v", clients, want)
	}
	if f.Omitted != 7 || f.Count != 12 {
		t.Errorf("omitted %d, count %d, want 7 and 12", f.Omitted, f.Count)
	}
}

func TestConnectionsGiven(t *testing.T) {
	r, _ := newRecorder(Config{})
	f := finding(1, at(5))
	f.Count = 7
	f.Connections = []trace.Connection{{Tuple: connection(1), Count: 3, Last: at(4)}, {Tuple: connection(2), Count: 4, Last: at(5)}}
	f.Omitted = 2
	r.AddFinding(f)
	r.AddFinding(f)
	got := r.Findings(time.Time{})[0]
	want := []trace.Connection{{Tuple: connection(1), Count: 6, Last: at(4)}, {Tuple: connection(2), Count: 8, Last: at(5)}}
	if !slices.Equal(got.Connections, want) || got.Count != 14 || got.Omitted != 4 {
		t.Errorf("%v, count %d, omitted %d", got.Connections, got.Count, got.Omitted)
	}
}

func TestCountDoesNotWrap(t *testing.T) {
	r, _ := newRecorder(Config{})
	f := finding(1, at(0))
	f.Count = 1<<32 - 2
	r.AddFinding(f)
	r.AddFinding(f)
	if got := r.Findings(time.Time{})[0]; got.Count != 1<<32-1 || got.Connections[0].Count != 1<<32-1 {
		t.Errorf("count %d, connection %d", got.Count, got.Connections[0].Count)
	}
}

func TestRestrict(t *testing.T) {
	r, _ := newRecorder(Config{})
	for i := 1; i <= 3; i++ {
		r.AddFinding(finding(i, at(float64(i))))
	}
	r.AddFinding(finding(3, at(4)))
	record := r.Records(time.Time{})[0]

	client := func(n int) func([]trace.Tuple, trace.Process) bool {
		return func(tuples []trace.Tuple, _ trace.Process) bool { return slices.Contains(tuples, connection(n)) }
	}
	f, ok := record.Restrict(time.Time{}, client(3))
	if !ok || f.Count != 2 || len(f.Connections) != 1 || f.Connections[0].Tuple != connection(3) {
		t.Fatalf("restricted to client 3: %v %+v", ok, f)
	}
	if f.Path.Connection != connection(3) || f.Summary != "no route to client 3" || !f.FirstSeen.Equal(at(3)) || !f.LastSeen.Equal(at(4)) {
		t.Errorf("texts and path are another connection's: %q %v, %v to %v", f.Summary, f.Path.Connection, f.FirstSeen, f.LastSeen)
	}
	if len(f.Fix) != 1 {
		t.Errorf("fix %q", f.Fix)
	}
	if _, ok := record.Restrict(time.Time{}, client(9)); ok {
		t.Error("a client that never met the fault has it")
	}
	backend := func(tuples []trace.Tuple, _ trace.Process) bool {
		return slices.ContainsFunc(tuples, func(t trace.Tuple) bool { return t.Dst.Port() == 8080 })
	}
	if f, ok := record.Restrict(time.Time{}, backend); !ok || f.Count != 4 {
		t.Errorf("behind the NAT: %v, count %d", ok, f.Count)
	}
	group := func(_ []trace.Tuple, p trace.Process) bool { return p.PGID == 2 }
	if f, ok := record.Restrict(time.Time{}, group); !ok || f.Path.Connection != connection(2) {
		t.Errorf("by process group: %v, %v", ok, f.Path.Connection)
	}
	if f, ok := record.Restrict(at(3), nil); !ok || f.Count != 2 {
		t.Errorf("since the third: %v, count %d", ok, f.Count)
	}
	if f, ok := record.Restrict(time.Time{}, nil); !ok || f.Count != 4 {
		t.Errorf("all: %v, count %d", ok, f.Count)
	}
}

// TestRestrictOmitted: of those omitted it is not known whether they match.
func TestRestrictOmitted(t *testing.T) {
	r, _ := newRecorder(Config{MaxConnections: 40})
	for i := range 50 { // 0 to 9 are omitted; the last of them at 9
		r.AddFinding(finding(i, at(float64(i))))
	}
	record := r.Records(time.Time{})[0]
	only := func(clients ...int) func([]trace.Tuple, trace.Process) bool {
		return func(tuples []trace.Tuple, _ trace.Process) bool {
			return slices.ContainsFunc(clients, func(n int) bool { return tuples[0] == connection(n) })
		}
	}
	all := func([]trace.Tuple, trace.Process) bool { return true }
	for _, test := range []struct {
		name           string
		since          time.Time
		match          func([]trace.Tuple, trace.Process) bool
		count, omitted uint32
	}{
		{"no filter", time.Time{}, nil, 50, 10},
		{"all kept match", time.Time{}, all, 50, 10},
		{"some match", time.Time{}, only(48, 49), 2, 10},
		{"omitted since", at(9), only(48, 49), 2, 10},
		{"omitted before", at(9.5), only(48, 49), 2, 0},
		{"some are later", at(45), nil, 5, 0},
	} {
		f, ok := record.Restrict(test.since, test.match)
		if !ok || f.Count != test.count || f.Omitted != test.omitted {
			t.Errorf("%s: %v, count %d, omitted %d, want %d and %d", test.name, ok, f.Count, f.Omitted, test.count, test.omitted)
		}
	}
	f, ok := record.Restrict(time.Time{}, only(10)) // its report was given up for later ones
	if !ok || f.Path.Connection != connection(10) || f.Path.Client != connection(10).Src {
		t.Errorf("a connection without a report: %v, path of %v", ok, f.Path.Connection)
	}
	f, _ = record.Restrict(time.Time{}, all)
	if f.Path.Connection == connection(0) || f.Summary == "no route to client 0" {
		t.Errorf("shows an omitted connection, of which it is not known whether it matches: %v", f.Path.Connection)
	}
	if !f.FirstSeen.Equal(at(0)) || len(f.Connections) != 40 {
		t.Errorf("first seen %v, %d connections", f.FirstSeen, len(f.Connections))
	}
}

// TestRestrictOmittedByReporter: connections that the reporter left out count as met when it last met the fault.
func TestRestrictOmittedByReporter(t *testing.T) {
	r, _ := newRecorder(Config{})
	r.AddFinding(finding(1, at(1)))
	f := finding(2, at(5))
	f.Omitted = 3
	r.AddFinding(f)
	record := r.Records(time.Time{})[0]
	for since, want := range map[float64]uint32{2: 3, 5: 3} {
		if f, ok := record.Restrict(at(since), nil); !ok || f.Count != 1 || f.Omitted != want {
			t.Errorf("since %v: count %d, omitted %d, want %d", since, f.Count, f.Omitted, want)
		}
	}
}

// TestPlaceGetsItsName: a report from before a namespace had its name does not keep those from telling it that know it.
func TestPlaceGetsItsName(t *testing.T) {
	r, _ := newRecorder(Config{})
	report := func(n int, name string) trace.Finding {
		f := finding(n, at(float64(n)))
		f.Where.Place.Name, f.Summary = name, "a fault in "+name
		return f
	}
	r.AddFinding(report(1, ""))
	r.AddFinding(report(2, "node-1"))
	r.AddFinding(report(3, ""))
	records := r.Records(time.Time{})
	if len(records) != 1 {
		t.Fatalf("%d findings, want 1", len(records))
	}
	first2 := func(tuples []trace.Tuple, _ trace.Process) bool {
		return tuples[0] == connection(1) || tuples[0] == connection(2)
	}
	for name, match := range map[string]func([]trace.Tuple, trace.Process) bool{"all": nil, "some": first2} {
		f, ok := records[0].Restrict(time.Time{}, match)
		if !ok || f.Where.Place.Name != "node-1" || f.Summary != "a fault in node-1" {
			t.Errorf("%s: in %q, %q", name, f.Where.Place.Name, f.Summary)
		}
	}
}

// TestFault: one rule that many ports meet is one finding, though each fix names its port.
func TestFault(t *testing.T) {
	r, _ := newRecorder(Config{})
	report := func(n int, fault string) trace.Finding {
		f := finding(n, at(float64(n)))
		f.Fault, f.Fix = fault, []string{fmt.Sprint("nft insert rule inet filter input tcp dport ", n, " accept")}
		return f
	}
	r.AddFinding(report(1, "inet filter input 7"))
	r.AddFinding(report(2, "inet filter input 7"))
	r.AddFinding(report(3, "inet filter input 8"))
	records := r.Records(time.Time{})
	if len(records) != 2 {
		t.Fatalf("%d findings, want one for each rule", len(records))
	}
	if f := records[0].Finding; f.Count != 2 || len(f.Connections) != 2 || f.Fix[0] != report(1, "").Fix[0] {
		t.Errorf("count %d, %d connections, fix %q", f.Count, len(f.Connections), f.Fix)
	}
	second := func(tuples []trace.Tuple, _ trace.Process) bool { return tuples[0] == connection(2) }
	if f, ok := records[0].Restrict(time.Time{}, second); !ok || f.Fix[0] != report(2, "").Fix[0] || f.Fault == "" {
		t.Errorf("restricted to the second: fix %q, want that of its own port", f.Fix)
	}
	surer := report(6, "inet filter input 7")
	surer.Confidence = trace.Certain
	r.AddFinding(surer)
	if f := r.Findings(time.Time{})[0]; f.Fix[0] != surer.Fix[0] || f.Summary != surer.Summary {
		t.Errorf("summary %q with fix %q: they are of different reports", f.Summary, f.Fix)
	}
	for name, change := range map[string]func(*trace.Finding){
		"id":        func(f *trace.Finding) { f.ID = "other" },
		"direction": func(f *trace.Finding) { f.Direction = trace.Request },
		"namespace": func(f *trace.Finding) { f.Where.Place.Netns = 3 },
	} {
		before := len(r.Findings(time.Time{}))
		f := report(7, "inet filter input 7")
		change(&f)
		r.AddFinding(f)
		if got := len(r.Findings(time.Time{})); got != before+1 {
			t.Errorf("another %s: %d findings, want %d", name, got, before+1)
		}
	}
}

func TestSince(t *testing.T) {
	r, _ := newRecorder(Config{})
	for i := range 5 {
		f := finding(i, at(float64(4-i)))
		f.ID = fmt.Sprint("fault-", i)
		r.AddFinding(f)
		r.AddPath(path(i, at(float64(4-i))))
	}
	var ids []string
	for _, f := range r.Findings(at(2)) {
		ids = append(ids, f.ID)
	}
	if want := []string{"fault-2", "fault-1", "fault-0"}; !slices.Equal(ids, want) {
		t.Errorf("findings %v, want %v in order of first seen", ids, want)
	}
	paths := r.Paths(at(2))
	if len(paths) != 3 || !paths[0].First.Equal(at(2)) || !paths[2].First.Equal(at(4)) {
		t.Errorf("paths %v", paths)
	}
}

func TestMaxAge(t *testing.T) {
	r, now := newRecorder(Config{MaxAge: time.Minute})
	r.AddFinding(finding(1, at(0)))
	r.AddPath(path(1, at(0)))
	now.now = at(60)
	if len(r.Findings(time.Time{})) != 1 || len(r.Paths(time.Time{})) != 1 {
		t.Error("forgotten too early")
	}
	now.now = at(61)
	if len(r.Findings(time.Time{})) != 0 || len(r.Paths(time.Time{})) != 0 {
		t.Error("not forgotten")
	}
	if s := r.Stats(); s.Bytes != 0 || s.FindingsForgotten != 0 || s.PathsForgotten != 0 {
		t.Errorf("stats %+v: what is too old is not lost", s)
	}
}

func TestPathReplaced(t *testing.T) {
	r, _ := newRecorder(Config{})
	r.AddPath(path(1, at(0)))
	later := path(1, at(0))
	later.Last, later.Answered = at(1), true
	r.AddPath(later)
	r.AddPath(path(1, at(9))) // the port used again
	paths := r.Paths(time.Time{})
	if len(paths) != 2 || !paths[0].Answered || !paths[1].First.Equal(at(9)) {
		t.Errorf("paths %+v", paths)
	}
}

func TestShrinkIsFair(t *testing.T) {
	r, _ := newRecorder(Config{MaxBytes: 200 << 10})
	for i := range 10 {
		f := finding(i, at(0))
		f.ID = fmt.Sprint("fault-", i)
		r.AddFinding(f)
	}
	for i := range 10_000 {
		r.AddPath(path(i, at(0)))
	}
	s := r.Stats()
	if s.Findings != 10 || s.Bytes > 200<<10 || s.PathsForgotten == 0 {
		t.Errorf("a flood of paths: %+v", s)
	}
	for i := range 10_000 {
		f := finding(i, at(0))
		f.ID = fmt.Sprint("fault-", i)
		r.AddFinding(f)
	}
	s = r.Stats()
	if s.Paths == 0 || s.Findings == 0 || s.Bytes > 200<<10 || s.FindingsForgotten == 0 {
		t.Errorf("a flood of findings: %+v", s)
	}
}

// raceDetector is set where it makes everything ten times slower.
var raceDetector bool

// TestMemory holds a million paths and a flood of findings against the heap.
func TestMemory(t *testing.T) {
	const limit = 16 << 20
	paths := 1_000_000
	if raceDetector {
		paths /= 10
	}
	before := heap()
	r, _ := newRecorder(Config{MaxBytes: limit})
	for i := range paths {
		p := path(i, at(0))
		p.Request[0].Place.Workload = strings.Repeat("w", i%64)
		r.AddPath(p)
		if i%100 == 0 {
			f := finding(i, at(0))
			f.ID = fmt.Sprint("fault-", i%200)
			r.AddFinding(f)
		}
	}
	held := int(heap()) - int(before)
	s := r.Stats()
	t.Logf("%+v, heap %d", s, held)
	if s.Bytes > limit {
		t.Errorf("%d bytes by its own estimate, limit %d", s.Bytes, limit)
	}
	if held > limit*5/4 || held < limit/2 {
		t.Errorf("the heap holds %d bytes; the estimate is %d", held, s.Bytes)
	}
	runtime.KeepAlive(r)
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func BenchmarkAddFinding(b *testing.B) {
	r, _ := newRecorder(Config{})
	i := 0
	for b.Loop() {
		r.AddFinding(finding(i, at(0)))
		i++
	}
}

func BenchmarkAddPath(b *testing.B) {
	r, _ := newRecorder(Config{})
	i := 0
	for b.Loop() {
		r.AddPath(path(i, at(0)))
		i++
	}
}
