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
	"slices"
	"strings"
	"testing"
	"time"
)

func TestMain(m *testing.M) {
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil || !strings.Contains(string(line), " vm.run=") || os.Getuid() != 0 {
		fmt.Fprintln(os.Stderr, "these tests change the host for good: run them in a virtual machine, with make test-vm")
		os.Exit(1)
	}
	status := m.Run()
	if err := started.stop(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		status = 1
	}
	os.Exit(status)
}

// program returns the path of one of the programs under test.
func program(name string) string { return filepath.Join(os.Getenv("REPLYPATH_BIN"), name) }

// answer is what a program said.
type answer struct {
	code   int
	stdout []byte
	stderr string
}

// run runs a command until it ends, for two minutes at most: an emulated machine needs some seconds to load the programs.
func run(t *testing.T, command ...string) answer {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatalf("run %s: %v", strings.Join(command, " "), err)
	}
	a := answer{cmd.ProcessState.ExitCode(), stdout.Bytes(), stderr.String()}
	t.Logf("%s: exit %d, stderr:\n%s", strings.Join(command, " "), a.code, a.stderr)
	return a
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

// result is what one lab gave, in a line of `lab run --all -o json`.
type result struct {
	Lab      string `json:"lab"`
	Expected string `json:"expected"`
	Got      string `json:"got"` // finding, direction and place, or none
	OK       bool   `json:"ok"`
}

// runLabs runs labs in one process, which takes seconds to load its programs; wrap runs the command in another way.
func runLabs(t *testing.T, names, wrap, flags []string) (answer, []result) {
	t.Helper()
	match := "^(" + strings.Join(names, "|") + ") "
	a := run(t, slices.Concat(wrap, []string{program("replypath"), "lab", "run", "--all", "--match", match, "-o", "json"}, flags)...)
	var results []result
	for line := range bytes.Lines(a.stdout) {
		var v struct {
			Lab result `json:"lab"`
		}
		if err := json.Unmarshal(line, &v); err != nil {
			t.Fatalf("not a line of JSON: %s", line)
		}
		if v.Lab.Lab != "" {
			results = append(results, v.Lab)
		}
	}
	return a, results
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

// explain runs labs and demands of them what they are for.
func explain(t *testing.T, flags []string, names ...string) {
	t.Helper()
	a, results := runLabs(t, names, nil, flags)
	if a.code != 0 || len(results) != len(names) {
		t.Errorf("labs %q: exit %d, %+v", names, a.code, results)
	}
}
