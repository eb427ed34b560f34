package correlate

import (
	"slices"

	"github.com/replypath/replypath/pkg/trace"
)

// joinLegs joins what other nodes saw of the connection with which a proxy goes on:
// it has a number of its own, so its tuple tells, if there is no choice.
func (j *joiner) joinLegs() {
	byTuple := make(map[trace.Tuple][]int)
	for n := range j.parts {
		for _, t := range j.parts[n].tuples {
			byTuple[t] = append(byTuple[t], n)
		}
	}
	for n := range j.parts {
		for _, t := range legTuples(j.parts[n].path) {
			var candidates []int
			for _, o := range byTuple[t] {
				if root := j.root(o); j.parts[o].view != j.parts[n].view && root != j.root(n) && !slices.Contains(candidates, root) {
					candidates = append(candidates, root)
				}
			}
			if len(candidates) == 1 {
				j.union(n, candidates[0])
			}
		}
	}
}

// legTuples are those of the connections that a proxy made where the one before ended.
func legTuples(p *trace.Path) []trace.Tuple {
	var tuples []trace.Tuple
	for i := 1; i < len(p.Request); i++ {
		h, before := &p.Request[i], &p.Request[i-1]
		if wasMade(h) && h.Place.Netns == before.Place.Netns && h.Place.Node == before.Place.Node {
			tuples = append(tuples, h.Tuple)
		}
	}
	return tuples
}
