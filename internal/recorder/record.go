package recorder

import (
	"container/list"
	"slices"
	"time"

	"github.com/replypath/replypath/pkg/trace"
	"github.com/replypath/replypath/pkg/trace/filter"
)

const (
	maxEvidence = 16 // of one finding: the first ones and the latest
	maxReports  = 16 // of one finding: the connections met last keep their own texts and path
)

// record is a kept finding and the connections that met it.
type record struct {
	key     trace.FaultKey
	number  uint64
	finding trace.Finding // without Connections: they are the members
	members []member      // in the order in which they met the fault
	omitted time.Time     // when the omitted connections met the fault last; not before they did
	bytes   int
	element *list.Element

	published time.Time // when it was last told to subscribers
	pending   bool      // there is more to tell
}

// member is a connection that met the fault.
type member struct {
	trace.Connection
	first   time.Time
	process trace.Process
	tuples  []trace.Tuple  // of its path, in the direction of the request; never changed, only replaced
	report  *trace.Finding // the finding as it was made for this connection; nil when others came after it
	bytes   int
}

func newRecord(key trace.FaultKey, number uint64, f *trace.Finding) *record {
	r := &record{key: key, number: number, finding: *f}
	r.finding.Connections = nil
	r.finding.Path = clonePath(f.Path)
	r.finding.Fix, r.finding.Verify = slices.Clone(f.Fix), slices.Clone(f.Verify)
	r.finding.Evidence = nil
	r.addEvidence(f.Evidence)
	if f.Omitted > 0 {
		r.omitted = f.LastSeen
	}
	r.bytes = recordBytes(r)
	return r
}

// merge adds what another report of the same fault says; its connections are addConnections' part.
func (r *record) merge(f *trace.Finding) {
	kept := &r.finding
	r.bytes -= recordBytes(r)
	kept.Count = addSaturating(kept.Count, f.Count)
	kept.Omitted = addSaturating(kept.Omitted, f.Omitted)
	if f.Omitted > 0 && f.LastSeen.After(r.omitted) {
		r.omitted = f.LastSeen
	}
	if f.FirstSeen.Before(kept.FirstSeen) {
		kept.FirstSeen = f.FirstSeen
	}
	if f.LastSeen.After(kept.LastSeen) {
		kept.LastSeen = f.LastSeen
	}
	kept.Severity = max(kept.Severity, f.Severity)
	if f.Confidence > kept.Confidence || f.Confidence == kept.Confidence && isNamed(f) && !isNamed(kept) {
		kept.Confidence = f.Confidence
		kept.Summary, kept.Cause, kept.Where = f.Summary, f.Cause, f.Where
		kept.Fix, kept.Verify = slices.Clone(f.Fix), slices.Clone(f.Verify)
	}
	if f.Path.Connection == kept.Path.Connection { // more is known of it by now
		kept.Path = clonePath(f.Path)
	}
	r.addEvidence(f.Evidence)
	r.bytes += recordBytes(r)
}

// isNamed reports whether the place where the fault is mended can be called by name, and so entered.
func isNamed(f *trace.Finding) bool {
	p := &f.Where.Place
	return p.Host || p.Name != "" || p.Workload != ""
}

// replaceLatest puts evidence in the place of the latest of its series, unless that is the first.
func replaceLatest(kept []trace.Evidence, e trace.Evidence) bool {
	first := true
	for i := range kept {
		switch {
		case e.Series == "" || kept[i].Series != e.Series:
		case first:
			first = false
		default:
			kept[i] = e
			return true
		}
	}
	return false
}

// addEvidence keeps the first and the latest.
func (r *record) addEvidence(evidence []trace.Evidence) {
	kept := r.finding.Evidence
	for _, e := range evidence {
		if replaceLatest(kept, e) {
			continue
		}
		if slices.ContainsFunc(kept, func(k trace.Evidence) bool { return k.Text == e.Text && k.Time.Equal(e.Time) }) {
			continue
		}
		if len(kept) == maxEvidence {
			kept = slices.Delete(kept, maxEvidence/2, maxEvidence/2+1)
		}
		kept = append(kept, e)
	}
	r.finding.Evidence = kept
}

// addConnections merges the report's connections by tuple. Beyond the limit
// the one that was met the longest ago makes room, and is counted as omitted.
func (r *record) addConnections(f *trace.Finding, limit int) {
	connections := f.Connections
	if len(connections) == 0 && f.Path.Connection.IsValid() {
		connections = []trace.Connection{{Tuple: f.Path.Connection, Count: f.Count, Last: f.LastSeen}}
	}
	for _, c := range connections {
		if c.Last.IsZero() {
			c.Last = f.LastSeen
		}
		i := slices.IndexFunc(r.members, func(m member) bool { return m.Tuple == c.Tuple })
		if i >= 0 {
			r.members[i].Count = addSaturating(r.members[i].Count, c.Count)
			if c.Last.After(r.members[i].Last) {
				r.members[i].Last = c.Last
			}
		} else {
			if len(r.members) >= limit {
				r.omitOldest()
			}
			i = len(r.members)
			r.members = append(r.members, member{Connection: c, first: c.Last})
		}
		r.describe(&r.members[i], f)
	}
	r.dropReports()
}

// describe takes from the report what it says of this connection.
func (r *record) describe(m *member, f *trace.Finding) {
	r.bytes -= m.bytes
	if m.Tuple == f.Path.Connection {
		report := *f
		report.Path = clonePath(f.Path)
		report.Evidence, report.Fix, report.Verify = slices.Clone(f.Evidence), slices.Clone(f.Fix), slices.Clone(f.Verify)
		report.Connections = nil // they are the record's
		if m.report != nil && len(report.Evidence) == 0 {
			report.Evidence = m.report.Evidence
		}
		m.report = &report
		if f.Path.Process.PID != 0 { // of what is repeated after its path was given up, nobody says
			m.process = f.Path.Process
		}
		m.tuples = uniqueTuples(&report.Path)
		if first := f.Path.First; !first.IsZero() && first.Before(m.first) {
			m.first = first
		}
	}
	if m.tuples == nil {
		m.tuples = []trace.Tuple{m.Tuple}
	}
	m.bytes = memberBytes(m)
	r.bytes += m.bytes
}

// omitOldest forgets the connection that was met the longest ago.
func (r *record) omitOldest() {
	oldest := 0
	for i := range r.members {
		if r.members[i].Last.Before(r.members[oldest].Last) {
			oldest = i
		}
	}
	if last := r.members[oldest].Last; last.After(r.omitted) {
		r.omitted = last
	}
	r.bytes -= r.members[oldest].bytes
	r.members = slices.Delete(r.members, oldest, oldest+1)
	r.finding.Omitted = addSaturating(r.finding.Omitted, 1)
}

// dropReports keeps the reports of the connections met last.
func (r *record) dropReports() {
	for {
		count, oldest := 0, -1
		for i := range r.members {
			if r.members[i].report == nil {
				continue
			}
			count++
			if oldest < 0 || r.members[i].Last.Before(r.members[oldest].Last) {
				oldest = i
			}
		}
		if count <= maxReports {
			return
		}
		m := &r.members[oldest]
		r.bytes -= m.bytes
		m.report = nil
		m.bytes = memberBytes(m)
		r.bytes += m.bytes
	}
}

// snapshot returns a copy that later merges do not change.
func (r *record) snapshot() Record {
	s := Record{Number: r.number, Finding: r.finding, members: slices.Clone(r.members), omitted: r.omitted}
	s.Finding.Evidence = slices.Clone(r.finding.Evidence)
	s.Finding.Connections = connectionsOf(r.members)
	return s
}

// Record is a finding as it was kept at one moment.
type Record struct {
	Number  uint64 // tells findings of one recorder apart
	Finding trace.Finding
	members []member
	omitted time.Time
}

// Restrict returns the finding as it is for those of its connections that were
// met at or after since and that match (tuples are those of the connection's
// path, in the direction of the request). A nil match takes all. It reports
// false when there are none.
//
// When all connections that are kept match, so may those that are not: Count,
// Omitted and the times stay those of the whole finding. When only some do,
// Connections, Count, times and path are theirs: Count is "at least" as long as
// Omitted, which keeps the number of those of which it cannot be told whether
// they match, is not zero.
func (r *Record) Restrict(since time.Time, match func(tuples []trace.Tuple, client trace.Process) bool) (trace.Finding, bool) {
	var matched []member
	for _, m := range r.members {
		if !m.Last.Before(since) && (match == nil || match(m.tuples, m.process)) {
			matched = append(matched, m)
		}
	}
	if len(matched) == 0 {
		return trace.Finding{}, false
	}
	f := r.Finding
	if len(matched) == len(r.members) {
		if match != nil && f.Omitted > 0 {
			show(&f, matched) // its own path may be that of an omitted connection
		}
		return f, true
	}
	f.Connections = connectionsOf(matched)
	if r.omitted.Before(since) {
		f.Omitted = 0
	}
	f.Count, f.FirstSeen, f.LastSeen = 0, matched[0].first, matched[0].Last
	for _, m := range matched {
		f.Count = addSaturating(f.Count, m.Count)
		if m.first.Before(f.FirstSeen) {
			f.FirstSeen = m.first
		}
		if m.Last.After(f.LastSeen) {
			f.LastSeen = m.Last
		}
	}
	show(&f, matched)
	return f, true
}

// show gives the finding the path and texts of the first connection that still has them, and that knows its place's name.
func show(f *trace.Finding, matched []member) {
	var report *trace.Finding
	for _, m := range matched {
		if m.report != nil && (report == nil || isNamed(m.report) && !isNamed(report)) {
			report = m.report
		}
	}
	if report != nil {
		f.Path, f.Evidence, f.Where = report.Path, report.Evidence, report.Where
		f.Summary, f.Cause, f.Fix, f.Verify = report.Summary, report.Cause, report.Fix, report.Verify
		return
	}
	m := matched[0]
	if f.Path.Connection == m.Tuple {
		return
	}
	f.Path = trace.Path{
		Protocol: m.Tuple.Protocol, Client: m.Src, Server: m.Dst, Connection: m.Tuple,
		First: m.first, Last: m.Last, Requests: m.Count, Process: m.process,
	}
}

func connectionsOf(members []member) []trace.Connection {
	connections := make([]trace.Connection, len(members))
	for i, m := range members {
		connections[i] = m.Connection
	}
	return connections
}

// uniqueTuples returns what a filter is matched against.
func uniqueTuples(p *trace.Path) []trace.Tuple {
	var unique []trace.Tuple
	for _, t := range filter.Tuples(nil, p) {
		if !slices.Contains(unique, t) {
			unique = append(unique, t)
		}
	}
	return slices.Clip(unique)
}

func clonePath(p trace.Path) trace.Path {
	p.Request, p.Reply = slices.Clone(p.Request), slices.Clone(p.Reply)
	return p
}

// addSaturating adds without wrapping round.
func addSaturating(a, b uint32) uint32 {
	if sum := a + b; sum >= a {
		return sum
	}
	return 1<<32 - 1
}
