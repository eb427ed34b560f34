package correlate

import (
	"slices"

	"github.com/replypath/replypath/pkg/trace"
)

// View is what the agent of one node knows. The places in it name their node.
type View struct {
	Paths    []trace.Path
	Findings []trace.Finding
}

// Exchange is a path over all nodes that saw some of it.
type Exchange struct {
	Path   trace.Path
	Faulty bool // a finding is about it
}

// Join puts together what several agents know: the parts of one exchange become
// one path, and the findings about it one. Clocks of different nodes are not
// compared. Exchanges that keep refuses, by their tuples in request direction, are
// left out; a nil keep takes all.
func Join(views []View, keep func([]trace.Tuple) bool) ([]Exchange, []trace.Finding) {
	j := joiner{views: views, lookup: make(map[viewTuple][]int)}
	j.collect()
	j.joinSequences()
	j.joinLegs()
	j.joinTuples()
	groups := j.groups()
	exchanges := make([]Exchange, 0, len(groups))
	number := make(map[int]int) // of the exchange, by the root of its parts; leftOut
	for _, g := range groups {
		var tuples []trace.Tuple
		parts := make([]*trace.Path, len(g))
		for i, n := range g {
			tuples = append(tuples, j.parts[n].tuples...)
			parts[i] = j.parts[n].path
		}
		if keep != nil && !keep(tuples) {
			number[j.root(g[0])] = leftOut
			continue
		}
		number[j.root(g[0])] = len(exchanges)
		exchanges = append(exchanges, Exchange{Path: assemble(parts)})
	}
	st := settlement{views: views, exchanges: exchanges, exchangeOf: func(view int, c trace.Connection) int {
		if n, ok := j.find(view, c); ok {
			return number[j.root(n)]
		}
		return unknown
	}}
	return exchanges, st.settle()
}

// part is what one node saw of an exchange.
type part struct {
	view   int
	path   *trace.Path
	tuples []trace.Tuple // in request direction, as they were seen
	parent int           // in the forest of joined parts
}

type viewTuple struct {
	view  int
	tuple trace.Tuple
}

// joiner finds the parts that belong together.
type joiner struct {
	views  []View
	parts  []part
	lookup map[viewTuple][]int // parts by the connection as their node knows it
}

// collect lists the parts: paths, and those of findings that are not among them.
func (j *joiner) collect() {
	for v := range j.views {
		for i := range j.views[v].Paths {
			j.add(v, &j.views[v].Paths[i])
		}
		for i := range j.views[v].Findings {
			p := &j.views[v].Findings[i].Path
			known := slices.ContainsFunc(j.lookup[viewTuple{v, p.Connection}], func(n int) bool { return j.parts[n].path.First.Equal(p.First) })
			if p.Connection.IsValid() && !known {
				j.add(v, p)
			}
		}
	}
}

func (j *joiner) add(view int, p *trace.Path) {
	key := viewTuple{view, p.Connection}
	j.lookup[key] = append(j.lookup[key], len(j.parts))
	j.parts = append(j.parts, part{view, p, tuplesOf(p), len(j.parts)})
}

// tuplesOf returns the tuples that a path was seen with, in request direction.
func tuplesOf(p *trace.Path) []trace.Tuple {
	var tuples []trace.Tuple
	add := func(t trace.Tuple) {
		if t.IsValid() && !slices.Contains(tuples, t) {
			tuples = append(tuples, t)
		}
	}
	add(p.Connection)
	for i := range p.Request {
		add(p.Request[i].Arrived)
		add(p.Request[i].Tuple)
	}
	for i := range p.Reply {
		add(p.Reply[i].Arrived.Reverse())
		add(p.Reply[i].Tuple.Reverse())
	}
	return tuples
}

// find returns the part that a node's finding names by its connection. Of several
// it is the latest that had begun when the fault was met, by the node's own clock.
func (j *joiner) find(view int, c trace.Connection) (int, bool) {
	list := j.lookup[viewTuple{view, c.Tuple}]
	if len(list) == 0 {
		return 0, false
	}
	best := list[0]
	for _, n := range list[1:] {
		first := j.parts[n].path.First
		if !first.After(c.Last) && first.After(j.parts[best].path.First) {
			best = n
		}
	}
	return best, true
}

// root returns the part that stands for all that are joined with n.
func (j *joiner) root(n int) int {
	for j.parts[n].parent != n {
		j.parts[n].parent = j.parts[j.parts[n].parent].parent
		n = j.parts[n].parent
	}
	return n
}

// union joins two parts; the first that was listed stands for both.
func (j *joiner) union(a, b int) {
	a, b = j.root(a), j.root(b)
	j.parts[max(a, b)].parent = min(a, b)
}

// sequenceTuple is what a SYN is known by from node to node.
type sequenceTuple struct {
	sequence uint32
	tuple    trace.Tuple
}

// maxAlike bounds the exchanges with one sequence number that are compared one
// with another: scanners use one number for all.
const maxAlike = 32

// joinSequences joins the parts of TCP whose SYN had the same number: those that
// went with the same tuple somewhere, and then those that a NAT between nodes left
// one end or the client's port, if there is no choice.
func (j *joiner) joinSequences() {
	seen := make(map[sequenceTuple]int)
	alike := make(map[uint32][]int)
	for n := range j.parts {
		seq := j.parts[n].path.Sequence
		if seq == 0 {
			continue
		}
		alike[seq] = append(alike[seq], n)
		for _, t := range j.parts[n].tuples {
			if other, ok := seen[sequenceTuple{seq, t}]; ok {
				j.union(other, n)
			} else {
				seen[sequenceTuple{seq, t}] = n
			}
		}
	}
	for n := range j.parts { // in the order of the parts, not of the map
		list := alike[j.parts[n].path.Sequence]
		if len(list) < 2 || len(list) > maxAlike || list[0] != n {
			continue
		}
		j.joinTranslated(list)
	}
}

// joinTranslated joins parts of one number that share no tuple.
func (j *joiner) joinTranslated(list []int) {
	for _, a := range list {
		var candidates []int
		for _, b := range list {
			if j.root(a) != j.root(b) && j.parts[a].view != j.parts[b].view && j.resemble(a, b) && !slices.Contains(candidates, j.root(b)) {
				candidates = append(candidates, j.root(b))
			}
		}
		if len(candidates) == 1 {
			j.union(a, candidates[0])
		}
	}
}

// resemble reports whether two parts can be the same packets before and after a NAT.
func (j *joiner) resemble(a, b int) bool {
	for _, t := range j.parts[a].tuples {
		for _, u := range j.parts[b].tuples {
			if t.Protocol == u.Protocol && (t.Src == u.Src || t.Dst == u.Dst || t.Src.Port() == u.Src.Port()) {
				return true
			}
		}
	}
	return false
}

// joinTuples joins by their tuples alone the parts that have no sequence number:
// UDP, and connections that an agent came to late. All that went with one tuple is
// one exchange then, unless it was made in two places: private addresses are used on many nodes.
func (j *joiner) joinTuples() {
	byTuple := make(map[trace.Tuple][]int)
	for n := range j.parts {
		for _, t := range j.parts[n].tuples {
			byTuple[t] = append(byTuple[t], n)
		}
	}
	for n := range j.parts {
		if j.parts[n].path.Sequence != 0 {
			continue
		}
		for _, t := range j.parts[n].tuples {
			if other, ok := j.onlyOther(byTuple[t], n); ok {
				j.union(other, n)
			}
		}
	}
}

// onlyOther returns the part that n is to be joined with, if that is clear: the
// first without a sequence number, else the only exchange that has one.
func (j *joiner) onlyOther(list []int, n int) (int, bool) {
	other := -1
	for _, o := range list {
		switch {
		case o == n || j.conflict(o, n):
		case j.parts[o].path.Sequence == 0:
			return o, true
		case other >= 0 && j.root(other) != j.root(o):
			return 0, false // its port was used again
		default:
			other = o
		}
	}
	return other, other >= 0
}

// conflict reports whether two parts have a client each. One that left the first
// node with fewer hops to live than it was made with came out of a tunnel that no device shows.
func (j *joiner) conflict(a, b int) bool {
	p, q := j.parts[a].path, j.parts[b].path
	if j.parts[a].view == j.parts[b].view || len(p.Request) == 0 || len(q.Request) == 0 {
		return false
	}
	x, y := &p.Request[0], &q.Request[0]
	return wasMade(x) && wasMade(y) && x.TTL == y.TTL && x.Place != y.Place
}

// groups returns the parts of each exchange, in the order in which they were listed.
func (j *joiner) groups() [][]int {
	index := make(map[int]int)
	var groups [][]int
	for n := range j.parts {
		root := j.root(n)
		if _, ok := index[root]; !ok {
			index[root] = len(groups)
			groups = append(groups, nil)
		}
		groups[index[root]] = append(groups[index[root]], n)
	}
	return groups
}
