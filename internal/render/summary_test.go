package render

import (
	"testing"

	tracev1 "github.com/replypath/replypath/api/trace/v1"
)

// A cause is written in words; the name of a namespace stays as it is.
func TestCauses(t *testing.T) {
	losses := []*tracev1.Loss{{Cause: "ring_buffer_full", Count: 3}, {Cause: "namespace_limit of pod_a", Count: 1200}}
	if got, want := causesTold(losses, 1203), "ring buffer full: 3, namespace limit of pod_a: 1,200"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
