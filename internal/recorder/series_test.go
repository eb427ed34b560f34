package recorder

import (
	"fmt"
	"testing"

	"github.com/replypath/replypath/pkg/trace"
)

// TestSeries: a counter that moves is told once from its beginning, and once as it stands.
func TestSeries(t *testing.T) {
	var r record
	for n := range 40 {
		r.addEvidence([]trace.Evidence{{Text: fmt.Sprint("counter at ", n), Series: "counter"}, {Text: "dropped"}})
	}
	kept := r.finding.Evidence
	if len(kept) != 3 || kept[0].Text != "counter at 0" || kept[1].Text != "dropped" || kept[2].Text != "counter at 39" {
		t.Errorf("kept %+v", kept)
	}
}
