package main

import "testing"

// TestTraceRulesRefused: what it adds to a host is never added by the way.
func TestTraceRulesRefused(t *testing.T) {
	for _, c := range []struct {
		args   []string
		euid   int
		code   int
		stderr string
	}{
		{[]string{"explain", "--trace-rules"}, 0, exitUsage, `.*needs a command after --, or --follow.*`},
		{[]string{"explain", "--trace-rules", "--", "true"}, 1000, exitNoAgent, `.*takes root.*\n`},
		{[]string{"explain", "--trace-rules", "--follow"}, 1000, exitNoAgent, `.*takes root.*\n`},
		{[]string{"explain", "--trace-rules", "--server", "unix:///x", "--", "true"}, 0, exitUsage, `.*does not go with --server.*`},
		{[]string{"lab", "run", "--trace-rules", "--all"}, 0, exitUsage, `.*for one lab.*`},
	} {
		w := newTestWorld(c.args...).alone(c.euid, nil)
		w.expect(t, w.run(), c.code, "", c.stderr)
	}
}
