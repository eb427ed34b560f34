package netstate

import (
	"strings"
	"testing"

	"github.com/replypath/replypath/pkg/trace"
)

func TestParseTrackingCounters(t *testing.T) {
	const text = `entries  clashres found new invalid ignore delete chainlength insert insert_failed drop early_drop icmp_error  expect_new expect_create expect_delete search_restart
00000003  00000002 00000000 00000000 00000010 00000000 00000000 00000000 00000000 00000003 00000002 00000001 00000000  00000000 00000000 00000000 00000000
00000003  00000000 00000000 00000000 00000001 00000000 00000000 00000000 00000000 00000000 0000000a 00000000 00000000  00000000 00000000 00000000 00000000
`
	var state trace.ConntrackState
	parseTrackingCounters(strings.NewReader(text), &state)
	if want := (trace.ConntrackState{Drops: 12, Invalid: 17, InsertFailed: 3, Clashes: 2}); state != want {
		t.Errorf("%+v, want %+v", state, want)
	}
	var none trace.ConntrackState
	parseTrackingCounters(strings.NewReader(""), &none)
	if none != (trace.ConntrackState{}) {
		t.Errorf("of nothing: %+v", none)
	}
}
