package render_test

import (
	"encoding/json"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/google/go-cmp/cmp"

	tracev1 "github.com/replypath/replypath/api/trace/v1"
	"github.com/replypath/replypath/internal/render"
)

func line(t *testing.T, m proto.Message) string {
	t.Helper()
	b, err := render.JSON(m)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestJSON(t *testing.T) {
	var lines strings.Builder
	for _, tc := range findings {
		lines.WriteString(line(t, &tracev1.ExplainResponse{Result: &tracev1.ExplainResponse_Finding{Finding: tc.finding()}}))
	}
	lines.WriteString(line(t, &tracev1.ExplainResponse{Result: &tracev1.ExplainResponse_Path{Path: noRoute().GetPath()}}))
	lines.WriteString(line(t, &tracev1.WatchResponse{Result: &tracev1.WatchResponse_LostEvents{LostEvents: &tracev1.LostEvents{Count: 2}}}))
	lines.WriteString(line(t, &tracev1.ExplainResponse{Result: &tracev1.ExplainResponse_Summary{Summary: &tracev1.Summary{Verdict: "ok", Paths: 3, Nodes: 1}}}))
	n, err := render.NodeJSON(node())
	if err != nil {
		t.Fatal(err)
	}
	lines.Write(n)
	golden(t, "lines.jsonl", lines.String())

	for l := range strings.Lines(lines.String()) {
		var v map[string]map[string]any
		if err := json.Unmarshal([]byte(l), &v); err != nil || len(v) != 1 {
			t.Errorf("not an object with one member: %v\n%s", err, l)
		}
	}
}

// TestJSONKeepsValues reads a hostile finding back: escaping must not change it.
func TestJSONKeepsValues(t *testing.T) {
	want := hostile()
	text := line(t, want)
	if i := strings.IndexFunc(strings.TrimSuffix(text, "\n"), func(r rune) bool { return r < ' ' || r == 0x202e || r == 0x7f || r == 0x9b }); i >= 0 {
		t.Errorf("a character that moves a terminal stands in the JSON at %d: %q", i, text)
	}
	var got tracev1.Finding
	if err := protojson.Unmarshal([]byte(text), &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, &got, protocmp.Transform()); diff != "" {
		t.Errorf("values changed (-want +got):\n%s", diff)
	}
}

func TestJSONInvalidUTF8(t *testing.T) {
	f := noRoute()
	f.Where.Netns, f.Fix, f.Evidence[0].Text = "a\xffb", []string{"\xc3("}, "caf\xe9 é"
	var got tracev1.Finding
	if err := protojson.Unmarshal([]byte(line(t, f)), &got); err != nil {
		t.Fatal(err)
	}
	if got.Where.Netns != `a\xffb` || got.Fix[0] != `\xc3(` || got.Evidence[0].Text != `caf\xe9 é` {
		t.Errorf("got %q, %q, %q", got.Where.Netns, got.Fix[0], got.Evidence[0].Text)
	}
	if f.Where.Netns != "a\xffb" {
		t.Error("the caller's message was changed")
	}
}

func TestJSONIsStable(t *testing.T) {
	first := line(t, noRoute())
	for range 20 {
		if again := line(t, noRoute()); again != first {
			t.Fatalf("same message, other bytes:\n%s%s", first, again)
		}
	}
}
