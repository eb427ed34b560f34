package docs

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/replypath/replypath/internal/lab"
	"github.com/replypath/replypath/internal/metrics"
	"github.com/replypath/replypath/pkg/trace/diagnose"
)

//go:generate go test -run TestGenerated -update .
var update = flag.Bool("update", false, "write findings.md and metrics.md")

const notice = "<!-- Written by make generate; change the %s instead. -->\n\n"

// TestGenerated compares the pages that follow from code with that code, or
// writes them with -update.
func TestGenerated(t *testing.T) {
	for page, write := range map[string]func(*bytes.Buffer) error{
		"findings.md": writeFindings,
		"metrics.md":  writeMetrics,
	} {
		var text bytes.Buffer
		if err := write(&text); err != nil {
			t.Fatal(err)
		}
		if *update {
			if err := os.WriteFile(page, text.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		committed, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(committed), text.String()); diff != "" {
			t.Errorf("%s is stale, run make generate (-page +code):\n%s", page, diff)
		}
	}
}

// writeFindings writes the catalogue of findings, in the order in which rules are tried.
func writeFindings(text *bytes.Buffer) error {
	fmt.Fprintf(text, notice, "rules in pkg/trace/diagnose")
	text.WriteString("# Findings\n\n" +
		"A finding is a diagnosed fault. Its id is stable; scripts can rely on it. Rules are tried in this order, and the\n" +
		"first one that explains a case makes the finding: one fault, one finding.\n\n" +
		"| finding | says | severity |\n| --- | --- | --- |\n")
	for _, rule := range diagnose.Rules() {
		fmt.Fprintf(text, "| [`%s`](#%s) | %s | %s |\n", rule.ID, rule.ID, rule.Title, rule.Severity)
	}
	text.WriteString("\nThese are made by `replypath validate`, from what a namespace says of itself:\n\n" +
		"| finding | says | severity |\n| --- | --- | --- |\n")
	for _, rule := range diagnose.Validations() {
		fmt.Fprintf(text, "| [`%s`](#%s) | %s | %s |\n", rule.ID, rule.ID, rule.Title, rule.Severity)
	}
	told := make(map[string]bool) // some are made by both
	for _, rule := range append(diagnose.Rules(), diagnose.Validations()...) {
		if told[rule.ID] {
			continue
		}
		told[rule.ID] = true
		fmt.Fprintf(text, "\n## %s\n\n%s.\n\n%s\n", rule.ID, upper(rule.Title), rule.Doc)
		if labs := labsOf(rule.ID); len(labs) > 0 {
			text.WriteString("\nSee it, each with `sudo replypath lab run NAME`:\n\n" + strings.Join(labs, ""))
		}
	}
	return nil
}

// labsOf lists the IPv4 labs that show a finding; those for IPv6 are the same with another name.
func labsOf(finding string) []string {
	var list []string
	for _, l := range lab.All() {
		if l.Finding == finding && l.Topology.Family == lab.IPv4 {
			list = append(list, fmt.Sprintf("- `%s`: %s\n", l.Name, l.Title))
		}
	}
	return list
}

func writeMetrics(text *bytes.Buffer) error {
	fmt.Fprintf(text, notice, "catalogue in internal/metrics")
	text.WriteString("# Metrics\n\n" +
		"`replypath-agent` shows these to Prometheus on `--metrics-listen` (`127.0.0.1:9464`), beside the usual `process_` and\n" +
		"`go_` metrics. No label holds an address, a port or a name that traffic can choose; names of DNS queries are\n" +
		"counted apart only with `--metrics-dns-names`.\n\n")
	return metrics.WriteDocs(text)
}

// upper returns a sentence's text with its first letter in upper case.
func upper(text string) string {
	if text == "" {
		return ""
	}
	return strings.ToUpper(text[:1]) + text[1:]
}
