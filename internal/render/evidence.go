package render

import (
	"fmt"
	"slices"
	"strings"
	"time"

	tracev1 "github.com/replypath/replypath/api/trace/v1"
)

// maxEvidence is how many lines of evidence the text shows; JSON has all.
const maxEvidence = 8

// sight is something seen, once or several times.
type sight struct {
	text        string
	first, last time.Time
	count       int
}

// evidence tells what was seen of the connection that is drawn, in order of
// time; what was seen again is counted.
func (t Text) evidence(f *tracev1.Finding) [][]word {
	sights, others := sightsOf(f)
	var rows [][]word
	for i, s := range sights {
		if i == maxEvidence {
			others += len(sights) - i
			break
		}
		var row []word
		if !s.first.IsZero() {
			row = append(row, unbroken(dim, t.clock(s.first)))
		}
		row = append(row, words(plain, t.prose(s.text))...)
		if s.count > 1 {
			again := fmt.Sprintf("(%d times", s.count)
			if !s.last.IsZero() {
				again += ", last " + t.clock(s.last)
			}
			row = append(row, words(dim, again+")")...)
		}
		rows = append(rows, row)
	}
	if others > 0 {
		rows = append(rows, words(dim, fmt.Sprintf("and %d more (-o json shows all)", others)))
	}
	return rows
}

// sightsOf joins evidence of one text, and counts what is of other connections.
func sightsOf(f *tracev1.Finding) (sights []*sight, others int) {
	index := make(map[string]*sight)
	for _, e := range f.GetEvidence() {
		if aboutOther(f, e.GetText()) {
			others++
			continue
		}
		var at time.Time
		if e.GetTime().IsValid() {
			at = e.GetTime().AsTime()
		}
		s := index[e.GetText()]
		if s == nil {
			s = &sight{text: e.GetText(), first: at, last: at}
			index[s.text] = s
			sights = append(sights, s)
		}
		s.count++
		if at.Before(s.first) {
			s.first = at
		}
		if at.After(s.last) {
			s.last = at
		}
	}
	slices.SortStableFunc(sights, func(a, b *sight) int { return a.first.Compare(b.first) })
	return sights, others
}

// aboutOther reports whether evidence names a client that is not the one drawn.
func aboutOther(f *tracev1.Finding, text string) bool {
	own := f.GetPath().GetClient()
	for _, c := range f.GetConnections() {
		if c.GetClient() != own && c.GetClient() != "" && names(text, c.GetClient()) && !names(text, own) {
			return true
		}
	}
	return false
}

// names reports whether text holds an address as a whole, not as the start of a longer one.
func names(text, address string) bool {
	for {
		before, after, found := strings.Cut(text, address)
		if !found {
			return false
		}
		if !strings.HasSuffix(before, ".") && !digit(before, len(before)-1) && !digit(after, 0) {
			return true
		}
		text = after
	}
}

func digit(s string, i int) bool { return i >= 0 && i < len(s) && s[i] >= '0' && s[i] <= '9' }
