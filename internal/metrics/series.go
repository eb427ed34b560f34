package metrics

import (
	"maps"
	"slices"
	"strings"
	"sync"
)

// MaxSeries is how many label values a metric shows; the others are summed in one.
const MaxSeries = 64

// other is the label value of those summed.
const other = "other"

// key is the label values of a series; a metric with one label uses the first.
type key [2]string

func compareKeys(a, b key) int {
	return slices.Compare(a[:], b[:])
}

// series caps the label values of one metric. Values keep their series once
// they have one, and those that got none never get one: a counter that moved
// from "other" to a series of its own would make "other" go down.
type series struct {
	mu       sync.Mutex
	admitted map[key]struct{}
}

// fold returns at most MaxSeries of the counts and the sum of the rest under "other".
func (s *series) fold(counts map[key]uint64) map[key]uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.admitted == nil {
		s.admitted = make(map[key]struct{})
	}
	folded := make(map[key]uint64, min(len(counts), MaxSeries)+1)
	for _, k := range slices.SortedFunc(maps.Keys(counts), compareKeys) {
		valid := key{strings.ToValidUTF8(k[0], "\uFFFD"), strings.ToValidUTF8(k[1], "\uFFFD")}
		if _, ok := s.admitted[valid]; !ok {
			if len(s.admitted) < MaxSeries {
				s.admitted[valid] = struct{}{}
			} else {
				valid = key{other, other}
			}
		}
		folded[valid] += counts[k]
	}
	return folded
}
