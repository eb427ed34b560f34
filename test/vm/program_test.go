//go:build vm

package vm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/replypath/replypath/internal/lab"
)

func TestMain(m *testing.M) {
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil || !strings.Contains(string(line), " vm.run=") || os.Getuid() != 0 {
		fmt.Fprintln(os.Stderr, "these tests change the host for good: run them in a virtual machine, with make test-vm")
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// program returns the path of one of the programs under test.
func program(name string) string { return filepath.Join(os.Getenv("REPLYPATH_BIN"), name) }

// answer is what a program said.
type answer struct {
	command string
	code    int
	stdout  []byte
	stderr  string
	err     error // it could not be run
}

// run runs a command until it ends, for two minutes at most: an emulated machine needs some seconds to load the programs.
func run(t *testing.T, command ...string) answer {
	t.Helper()
	a := start(t, command...)()
	a.check(t)
	return a
}

// start starts a command; what it returns waits for the end.
func start(t *testing.T, command ...string) (wait func() answer) {
	done := make(chan answer, 1)
	go func() {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, command[0], command[1:]...)
		var stdout, stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		err := cmd.Run()
		if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
			err = nil
		}
		done <- answer{strings.Join(command, " "), cmd.ProcessState.ExitCode(), stdout.Bytes(), stderr.String(), err}
	}()
	return func() answer { return <-done }
}

// check logs what was run, and fails the test when that was not possible.
func (a answer) check(t *testing.T) {
	t.Helper()
	if a.err != nil {
		t.Fatalf("run %s: %v", a.command, a.err)
	}
	t.Logf("%s: exit %d, stderr:\n%s", a.command, a.code, a.stderr)
}

// complaint is what a program said on stderr, but for the line that tells that
// it traces without an agent.
func (a answer) complaint() string {
	var lines []string
	for line := range strings.Lines(a.stderr) {
		if !strings.Contains(line, ": tracing in this process instead") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return strings.Join(lines, "\n")
}

// findings are the ids of the findings in an answer in JSON lines.
func (a answer) findings(t *testing.T) []string {
	t.Helper()
	var ids []string
	for line := range bytes.Lines(a.stdout) {
		var v struct {
			Finding *struct {
				ID         string `json:"id"`
				Confidence string `json:"confidence"`
			} `json:"finding"`
		}
		if err := json.Unmarshal(line, &v); err != nil {
			t.Fatalf("not a line of JSON: %s", line)
		}
		if v.Finding != nil {
			ids = append(ids, v.Finding.ID)
		}
	}
	return ids
}

// hook is one of `status -o json`.
type hook struct {
	Name   string `json:"name"`
	State  string `json:"state"`
	Reason string `json:"reason"`
	Means  string `json:"means"`
}

// node is what `status -o json` tells.
type node struct {
	Kernel string `json:"kernel"`
	Tier   string `json:"tier"`
	Hooks  []hook `json:"hooks"`
}

// statusOf asks for the status, with flags such as --tier or --server.
func statusOf(t *testing.T, flags ...string) node {
	t.Helper()
	a := run(t, append([]string{program("replypath"), "status", "-o", "json"}, flags...)...)
	var v struct {
		Node node `json:"node"`
	}
	if a.code != 0 {
		t.Fatalf("status ends with %d", a.code)
	}
	if err := json.Unmarshal(a.stdout, &v); err != nil {
		t.Fatalf("status in JSON: %v: %s", err, a.stdout)
	}
	return v.Node
}

// named returns a hook.
func (n node) named(name string) (hook, bool) {
	for _, h := range n.Hooks {
		if h.Name == name {
			return h, true
		}
	}
	return hook{}, false
}

// mustFind looks a lab up.
func mustFind(t *testing.T, name string) lab.Lab {
	t.Helper()
	l, ok := lab.Find(name)
	if !ok {
		t.Fatalf("no lab %s", name)
	}
	return l
}

// explain runs a lab and demands its finding.
func explain(t *testing.T, l lab.Lab, flags ...string) {
	t.Helper()
	a := run(t, append([]string{program("replypath"), "lab", "run", l.Name, "-o", "json"}, flags...)...)
	if got := a.findings(t); a.code != 1 || len(got) != 1 || got[0] != l.Finding {
		t.Errorf("lab %s: exit %d, findings %v; want exit 1, %s", l.Name, a.code, got, l.Finding)
	}
}
