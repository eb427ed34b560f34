package render_test

import (
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode"

	tracev1 "github.com/replypath/replypath/api/trace/v1"
	"github.com/replypath/replypath/internal/render"
)

var findings = []struct {
	name    string
	finding func() *tracev1.Finding
}{
	{"reply-never-left", noRoute},
	{"reply-lost-at-router", rpFilter},
	{"request-lost-at-filter", filterDrop},
	{"request-refused-ipv6", refused6},
	{"reply-went-on", outside},
	{"hostile", hostile},
	{"empty", func() *tracev1.Finding { return &tracev1.Finding{} }},
}

func TestFinding(t *testing.T) {
	for _, tc := range findings {
		t.Run(tc.name, func(t *testing.T) {
			golden(t, "finding/"+tc.name+".txt", render.Text{}.Finding(tc.finding()))
		})
	}
}

func TestFindingNarrow(t *testing.T) {
	const width = 60
	text := render.Text{Width: width}.Finding(noRoute())
	golden(t, "finding/narrow.txt", text)
	for line := range strings.Lines(text) {
		if strings.Contains(line, "ip netns exec") {
			continue // commands are never wrapped
		}
		if n := len(strings.TrimRight(line, "\n")); n > width {
			t.Errorf("line has %d columns: %q", n, line)
		}
	}
	if !strings.Contains(text, "ip netns exec backend ip route add default via 10.2.0.1 dev eth0\n") {
		t.Error("the command was wrapped")
	}
}

func TestFindingColor(t *testing.T) {
	text := render.Text{Color: true}.Finding(noRoute())
	golden(t, "finding/color.txt", text)
	if strip(text) != (render.Text{}).Finding(noRoute()) {
		t.Error("colour changed the layout")
	}
}

// strip removes "select graphic rendition" sequences.
func strip(s string) string {
	var b strings.Builder
	for {
		before, after, found := strings.Cut(s, "\x1b[")
		b.WriteString(before)
		if !found {
			return b.String()
		}
		_, s, _ = strings.Cut(after, "m")
	}
}

func TestHostileTextIsHarmless(t *testing.T) {
	f := hostile()
	texts := map[string]string{
		"finding": render.Text{}.Finding(f),
		"path":    render.Text{}.Path(f.GetPath()),
		"summary": render.Text{}.Summary(&tracev1.Summary{LostEvents: 2, Paths: 1, Losses: []*tracev1.Loss{{Cause: "\x1b[2J", Count: 2}}}, nil),
		"lost":    render.Text{}.Lost(&tracev1.LostEvents{Count: 2, Cause: "\x1b[2J"}),
		"status": render.Text{}.Status([]*tracev1.Node{{Name: "\x1bn", Kernel: "\u202e6", Hooks: []*tracev1.HookStatus{
			{Name: "\x07", State: "\x1b[", Reason: "\x00\xff"}}}}),
	}
	for name, text := range texts {
		for _, r := range strings.ReplaceAll(text, "\n", "") {
			if !unicode.IsPrint(r) {
				t.Errorf("%s holds %U:\n%q", name, r, text)
				break
			}
		}
	}
}

func TestEvidenceIsBounded(t *testing.T) {
	f := noRoute()
	for i := range 40 {
		f.Evidence = append(f.Evidence, &tracev1.Evidence{Text: fmt.Sprintf("retransmission %d", i)})
	}
	text := render.Text{}.Finding(f)
	if !strings.Contains(text, "and 35 more (-o json shows all)") || strings.Contains(text, "retransmission 10") {
		t.Errorf("evidence is not cut after 8 lines:\n%s", text)
	}
}

// TestEvidenceIsToldOnce has the same seen again, and the same of other connections.
func TestEvidenceIsToldOnce(t *testing.T) {
	f := noRoute()
	f.Evidence = append(f.Evidence,
		&tracev1.Evidence{Time: at("12:00:03.604"), Text: "SYN came in on eth0 of backend"},
		&tracev1.Evidence{Time: at("12:00:02.000"), Text: "SYN came in on eth0 of backend"},
		&tracev1.Evidence{Time: at("12:00:01.000"), Text: "SYN 198.51.100.7:4182 came in"},
		&tracev1.Evidence{Time: at("12:00:01.000"), Text: "SYN 198.51.100.7:41822 came in"},
		&tracev1.Evidence{Text: "no time"}, &tracev1.Evidence{Text: "no time"})
	f.Connections = append(f.Connections, &tracev1.Connection{Protocol: "tcp", Client: "198.51.100.7:4182", Server: vip})
	golden(t, "finding/evidence.txt", render.Text{}.Finding(f))
}

// TestTrim leaves a lab's prefix out of hops and prose, and keeps it in commands.
func TestTrim(t *testing.T) {
	f := noRoute()
	f.Path.Request[3].Netns, f.Where.Netns = "rplab-x-1234-backend", "rplab-x-1234-backend"
	f.Summary = "rplab-x-1234-backend has no route back"
	f.Fix = []string{"ip netns exec rplab-x-1234-backend ip route add default via 10.2.0.1 dev eth0   # 10.2.0.1 is where the request came from, which need not be right for all replies"}
	f.Verify = []string{"# " + strings.Repeat("look at it again and ", 8) + "again", "ip netns exec rplab-x-1234-backend nft add rule ip t c comment 'a # b' " + strings.Repeat("x", 60), "true   # shows that all is well"}
	golden(t, "finding/trim.txt", render.Text{Trim: "rplab-x-1234-"}.Finding(f))
}

func TestClockZone(t *testing.T) {
	zone := time.FixedZone("", 2*60*60)
	if text := (render.Text{Zone: zone}).Finding(noRoute()); !strings.Contains(text, "14:00:01.104 SYN came in") {
		t.Errorf("evidence is not in the zone asked for:\n%s", text)
	}
}

func TestPath(t *testing.T) {
	answered := refused6().GetPath()
	answered.LastSeen = at("12:00:01.106")
	unanswered := noRoute().GetPath()
	unseen := &tracev1.Path{Protocol: "udp", Client: "10.0.0.1:53000", Server: "10.0.0.53:53", Requests: 2, LastSeen: at("12:00:02.000")}
	got := render.Text{}.Path(answered) + render.Text{}.Path(unanswered) + render.Text{}.Path(unseen)
	golden(t, "paths.txt", got)
}

func TestSummary(t *testing.T) {
	cases := map[string]*tracev1.Summary{
		"fault":         {Verdict: "fault", Paths: 12, Findings: 1, Nodes: 1},
		"faults-lossy":  {Verdict: "fault", Paths: 1, Findings: 2, Nodes: 3, LostEvents: 1, Losses: []*tracev1.Loss{{Cause: "ring buffer full", Count: 1}}},
		"ok":            {Verdict: "ok", Paths: 2113, Nodes: 1},
		"nothing-lossy": {Verdict: "incomplete", Nodes: 1},
		"nothing":       {Verdict: "ok", Nodes: 1},
		"incomplete": {Verdict: "incomplete", Paths: 4, Nodes: 1, LostEvents: 2113,
			Losses: []*tracev1.Loss{{Cause: "ring_buffer_full", Count: 2000}, {Cause: "none", Count: 0}, {Cause: "path table full", Count: 113}}},
	}
	for name, s := range cases {
		t.Run(name, func(t *testing.T) { golden(t, "summary/"+name+".txt", render.Text{}.Summary(s, nil)) })
	}
}

// TestOmitted has connections that are not listed: counted with the others, or
// not, as when a filter was given and they cannot be compared with it.
func TestOmitted(t *testing.T) {
	cases := []struct {
		name           string
		count, omitted uint32
		want, refuse   []string
	}{
		{"none", 3, 0, []string{"certain, 3 times in 2.5s"}, []string{"more", "at least"}},
		{"counted", 13, 10, []string{"certain, 13 times in 2.5s", "and 10 more connections\n"}, []string{"perhaps", "at least"}},
		{"counted one", 4, 1, []string{"certain, 4 times", "and 1 more connection\n"}, []string{"perhaps", "at least"}},
		{"unsure", 3, 2000, []string{"certain, at least 3 times in 2.5s",
			"and perhaps 2,000 more connections: too little is kept of them to say whether they match\n"}, nil},
		{"unsure once", 1, 1, []string{"certain, at least once", "and perhaps 1 more connection: "}, nil},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			f := noRoute()
			f.Count, f.ConnectionsOmitted = tc.count, tc.omitted
			f.Connections[0].Count = min(tc.count, 3)
			text := render.Text{Width: 200}.Finding(f)
			for _, want := range tc.want {
				if !strings.Contains(text, want) {
					t.Errorf("no %q in\n%s", want, text)
				}
			}
			for _, refuse := range tc.refuse {
				if strings.Contains(text, refuse) {
					t.Errorf("%q in\n%s", refuse, text)
				}
			}
			want := "1 fault in 1 connection.\n"
			if tc.omitted > 0 {
				want = "1 fault in at least 1 connection.\n"
			}
			got := render.Text{}.Summary(&tracev1.Summary{Verdict: "fault", Findings: 1, Paths: 1, Nodes: 1}, []*tracev1.Finding{f})
			if got != want {
				t.Errorf("summary %q, want %q", got, want)
			}
		})
	}
}

// TestControlCharactersInCommands shows such a command as JSON has it, in a
// comment: escaped, it would be another command.
func TestControlCharactersInCommands(t *testing.T) {
	cases := map[string]string{
		"ip link show 'et\x1bh0'":                 `# (contains control characters) "ip link show 'et\u001bh0'"`,
		"ip netns exec 'a\nreboot' true":          `# (contains control characters) "ip netns exec 'a\nreboot' true"`,
		"nft x '\u202e\U000e0041\x7f\\ <&\"'":     `# (contains control characters) "nft x '\u202e\udb40\udc41\u007f\\ <&\"'"`,
		"ip link show 'é日'":                       `ip link show 'é日'`,
		"ip link show eth0 # \x07 is a bell":      `ip link show eth0 # \x07 is a bell`,
		"# \x07 is a bell":                        `# \x07 is a bell`,
		"ip link show 'e\x07' # the device in it": "# the device in it\n           " + `# (contains control characters) "ip link show 'e\u0007'"`,
	}
	for command, want := range cases {
		for label, f := range map[string]*tracev1.Finding{"fix": {Fix: []string{command}}, "verify": {Verify: []string{command}}} {
			text := render.Text{}.Finding(f)
			if want := fmt.Sprintf("  %-9s%s\n", label, want); !strings.Contains(text, want) {
				t.Errorf("no %q in %q", want, text)
			}
		}
	}
}

func node() *tracev1.Node {
	return &tracev1.Node{
		Name: "worker-1", Version: "v0.1.0", Kernel: "6.18.0", Tier: "base", Events: 1204512, Started: at("12:00:00.000"),
		LivePaths: 3, KeptPaths: 2113, KeptFindings: 1,
		Losses: []*tracev1.Loss{{Cause: "ring buffer full", Count: 2113}, {Cause: "path table full", Count: 0}},
		Hooks: []*tracev1.HookStatus{
			{Name: "kfree_skb", State: "attached"},
			{Name: "fib6_table_lookup", State: "absent", Reason: "the kernel has no such tracepoint; it was built without IPv6, or the module that holds it is not loaded"},
			{Name: "tcp_send_reset", State: "refused", Reason: "operation not permitted"},
		},
	}
}

func TestStatus(t *testing.T) {
	small := &tracev1.Node{Name: "worker-2", Version: "v0.1.0", Kernel: "5.10.0", Tier: "base"}
	golden(t, "status.txt", render.Text{}.Status([]*tracev1.Node{node(), small}))
	if got := (render.Text{}).Status(nil); got != "No node answered.\n" {
		t.Errorf("Status(nil) = %q", got)
	}
}

func TestAgain(t *testing.T) {
	golden(t, "again.txt", render.Text{}.Again(noRoute())+render.Text{}.Again(rpFilter()))
}

func TestLost(t *testing.T) {
	got := render.Text{}.Lost(&tracev1.LostEvents{Count: 2113, Cause: "this client reads too slowly"})
	want := "! 2,113 messages were lost (this client reads too slowly): there may be faults that are not shown.\n"
	if got != want {
		t.Errorf("Lost = %q, want %q", got, want)
	}
}
