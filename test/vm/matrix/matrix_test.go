package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// recorded is what the suite found out about two kernels.
func recorded(t *testing.T, kernels ...string) *page {
	t.Helper()
	p := newPage()
	for _, kernel := range kernels {
		r, err := readResults(filepath.Join("testdata", kernel))
		if err != nil {
			t.Fatal(err)
		}
		if err := p.add(kernel, r); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

func mustParse(t *testing.T, text string) *page {
	t.Helper()
	p, err := parsePage(text)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestPage(t *testing.T) {
	text := recorded(t, "5.10", "6.12").String()
	for _, want := range []string{
		"| finding | 5.10 | 6.12 |\n| --- | --- | --- |\n",
		"| release | 5.10.0-46-cloud-amd64 | 6.12.117+deb13-cloud-amd64 |\n",
		"| [`rp-filter-drop`](findings.md#rp-filter-drop) | likely (1) | certain |\n",
		"\n1. this kernel gives no reason for a drop",
		"| healthy networks | 32 of 32 silent | 32 of 32 silent |\n",
		"| `icmp:icmp_send` | absent (1) | attached, tp_btf |\n",
		"| `route:ip_route_input_noref` | attached, fexit | - |\n",
		"| `RLIMIT_MEMLOCK` of 64 KiB, no `CAP_SYS_RESOURCE` | says (1) | works |\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	if t.Failed() {
		t.Log(text)
	}
}

// What is written can be read: nothing of other kernels is lost when one is run again.
func TestPageIsReadBack(t *testing.T) {
	text := recorded(t, "5.10", "6.12").String()
	if diff := cmp.Diff(text, mustParse(t, text).String()); diff != "" {
		t.Errorf("written, read and written again (-first +second):\n%s", diff)
	}
}

func TestReplaceKeepsOtherColumns(t *testing.T) {
	whole := recorded(t, "5.10", "6.12").String()
	for _, kernel := range []string{"5.10", "6.12"} {
		p := mustParse(t, whole)
		p.replace(recorded(t, kernel))
		if diff := cmp.Diff(whole, p.String()); diff != "" {
			t.Errorf("column %s written again (-before +after):\n%s", kernel, diff)
		}
	}
	p := mustParse(t, recorded(t, "6.12").String())
	p.replace(recorded(t, "5.10"))
	if got := p.kernels; len(got) != 2 || got[0] != "5.10" || got[1] != "6.12" {
		t.Errorf("columns %v, want 5.10 before 6.12", got)
	}
}

// A row that a run no longer gives goes with its last column.
func TestReplaceForgets(t *testing.T) {
	p := recorded(t, "5.10", "6.12")
	p.tables[tableHooks].set("`gone`", "5.10", cell{text: "attached, kprobe"})
	p.tables[tableHooks].set("`elsewhere`", "6.12", cell{text: "attached, fexit"})
	p.replace(recorded(t, "5.10"))
	text := p.String()
	if strings.Contains(text, "`gone`") || !strings.Contains(text, "| `elsewhere` | - | attached, fexit |") {
		t.Errorf("page:\n%s", text)
	}
}

func TestCompare(t *testing.T) {
	committed := mustParse(t, recorded(t, "5.10", "6.12").String())
	if err := recorded(t, "6.12").compare(committed); err != nil {
		t.Errorf("the same: %v", err)
	}
	for name, change := range map[string]func(*page){
		"a cell": func(p *page) {
			p.tables[tableBase].set("[`rp-filter-drop`](findings.md#rp-filter-drop)", "6.12", cell{text: "likely"})
		},
		"a row is new":  func(p *page) { p.tables[tableHooks].set("`new`", "6.12", cell{text: "absent"}) },
		"a row is gone": func(p *page) { p.tables[tableConditions] = p.tables[tableConditions][1:] },
		"a tier":        func(p *page) { p.tables[tableKernels].set("tier", "6.12", cell{text: "base"}) },
	} {
		found := recorded(t, "6.12")
		change(found)
		if err := found.compare(committed); err == nil {
			t.Errorf("%s differs, and is not told", name)
		}
	}
	found := recorded(t, "6.12")
	found.tables[tableKernels].set(rowRelease, "6.12", cell{text: "6.12.999"})
	if err := found.compare(committed); err != nil {
		t.Errorf("another release: %v", err)
	}
	if err := recorded(t, "6.12").compare(newPage()); err == nil {
		t.Error("a kernel that the page does not have, and it is not told")
	}
}

func TestNoResult(t *testing.T) {
	lab := labResult{Lab: "x", Finding: "reply-route-rejected", Confidence: "certain", OK: true}
	for name, change := range map[string]func(*labResult){
		"wrong":           func(l *labResult) { l.OK = false },
		"unknown":         func(l *labResult) { l.Finding = "nonsense" },
		"no confidence":   func(l *labResult) { l.Confidence = "" },
		"lower, not said": func(l *labResult) { l.Confidence = "possible" },
	} {
		l := lab
		change(&l)
		var findings table
		if err := findings.addLabs("6.12", []labResult{lab, l}); err == nil {
			t.Errorf("%s: taken for a result: %+v", name, findings)
		}
	}
}

func TestOrderOfColumns(t *testing.T) {
	kernels := []string{"6.1-arm64", "6.12", "7.2", "5.10", "6.12-arm64", "6.1"}
	slices.SortFunc(kernels, bySeries)
	if diff := cmp.Diff([]string{"5.10", "6.1", "6.12", "7.2", "6.1-arm64", "6.12-arm64"}, kernels); diff != "" {
		t.Errorf("columns (-want +got):\n%s", diff)
	}
}

// Nothing that sets conditions up runs on arm64.
func TestResultsOfARM(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "6.12-arm64")
	if err := os.CopyFS(dir, os.DirFS("testdata/6.12")); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "conditions.json")); err != nil {
		t.Fatal(err)
	}
	r, err := readResults(dir)
	if err != nil {
		t.Fatal(err)
	}
	p := recorded(t, "6.12")
	if err := p.add("6.12-arm64", r); err != nil {
		t.Fatal(err)
	}
	text := p.String()
	if !strings.Contains(text, "| cgroup v1 in place of v2 | works | - |\n") {
		t.Errorf("page:\n%s", text)
	}
	if err := p.compare(mustParse(t, text)); err != nil {
		t.Error(err)
	}
}

func TestIncompleteResults(t *testing.T) {
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("testdata/6.12")); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"labs.json", "labs-base.json", "status.json", "conditions.json"} {
		whole, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			t.Fatal(err)
		}
		for _, part := range []string{"", string(whole[:len(whole)-20])} {
			if err := os.WriteFile(filepath.Join(dir, file), []byte(part), 0o644); err != nil {
				t.Fatal(err)
			}
			if _, err := readResults(dir); err == nil {
				t.Errorf("%s holds %d of %d bytes, and is taken for whole", file, len(part), len(whole))
			}
		}
		if err := os.WriteFile(filepath.Join(dir, file), whole, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
