package diagnose

import (
	"testing"

	"github.com/replypath/replypath/pkg/trace"
)

// TestMendedWithoutNames: a place that gets its name between two connections has one fault still.
func TestMendedWithoutNames(t *testing.T) {
	faults := map[string][]string{}
	for _, p := range []trace.Place{
		{Netns: 7},
		{Netns: 7, PID: 42},
		{Netns: 7, Name: "node-1"},
		{Netns: 7, Name: "node-1", Workload: "web/pod-0"},
	} {
		next := trace.Place{Netns: 8, Name: p.Name + "0"}
		c := &trace.Case{Place: p}
		c.Path.Request = []trace.Hop{{Place: next}, {Place: p}}
		got := mended(c, p, []string{
			at(p, "ip route add default via 10.2.0.1 dev eth0   # seen in %s", name(next)),
			"# give " + name(next) + " a route, or " + name(p),
		})
		faults[got] = append(faults[got], at(p, ""))
	}
	if len(faults) != 1 {
		t.Errorf("one fault has these keys, by how its place is known: %q", faults)
	}
	c := &trace.Case{Place: trace.Place{Netns: 7, Name: "a"}}
	if one, two := mended(c, c.Place, []string{"ip route add default via 10.2.0.1"}), mended(c, c.Place, []string{"ip route add default via 10.2.0.2"}); one == two {
		t.Errorf("two faults have the same key %q", one)
	}
}
