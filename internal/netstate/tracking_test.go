package netstate

import (
	"strings"
	"testing"
)

func TestParseTrackingCounters(t *testing.T) {
	const text = `entries  clashres found new invalid ignore delete chainlength insert insert_failed drop early_drop icmp_error  expect_new expect_create expect_delete search_restart
00000003  00000000 00000000 00000000 00000010 00000000 00000000 00000000 00000000 00000000 00000002 00000001 00000000  00000000 00000000 00000000 00000000
00000003  00000000 00000000 00000000 00000001 00000000 00000000 00000000 00000000 00000000 0000000a 00000000 00000000  00000000 00000000 00000000 00000000
`
	if drops, invalid := parseTrackingCounters(strings.NewReader(text)); drops != 12 || invalid != 17 {
		t.Errorf("drops %d, invalid %d; want 12 and 17", drops, invalid)
	}
	if drops, invalid := parseTrackingCounters(strings.NewReader("")); drops != 0 || invalid != 0 {
		t.Errorf("of nothing: %d, %d", drops, invalid)
	}
}
