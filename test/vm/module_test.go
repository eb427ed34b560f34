//go:build vm

package vm

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The filter's modules are loaded when somebody writes the first rule, which may
// be long after the agent started. Its drops must be explained then, and hooks in
// functions of modules be attached.
func TestModulesAppearLater(t *testing.T) {
	unloadFilters(t)
	server := startAgent(t)
	before := statusOf(t, server...)
	checkStatus(t, before, "plus")
	waiting := awaitModules(before)
	if before.Tier == "plus" && len(waiting) == 0 {
		t.Errorf("no hook waits for a module: %+v", before.Hooks)
	}
	explain(t, server, "routed-forward-drop")

	// A lab goes with its namespaces, the module stays.
	var now node
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(time.Second) {
		if now = statusOf(t, server...); len(stillAbsent(now, waiting)) == 0 {
			break
		}
	}
	for _, name := range stillAbsent(now, waiting) {
		t.Errorf("hook is absent although its module is loaded: %s", name)
	}
	explain(t, server, "routed-forward-drop")
	condition{name: "modules loaded after the agent started"}.note(t, "")
}

// awaitModules are the hooks that wait for a module, each with the module's name.
func awaitModules(n node) map[string]string {
	waiting := make(map[string]string)
	for _, h := range n.Hooks {
		if _, rest, found := strings.Cut(h.Reason, "module "); h.State == "absent" && found {
			module, _, _ := strings.Cut(rest, " ")
			waiting[h.Name] = module
		}
	}
	return waiting
}

// stillAbsent are the hooks that are absent although their module has been
// loaded. A kernel that shows no types of modules (before 5.11) may refuse.
func stillAbsent(n node, waiting map[string]string) []string {
	var absent []string
	for name, module := range waiting {
		h, _ := n.named(name)
		if _, err := os.Stat(filepath.Join("/sys/module", module)); err == nil && h.State == "absent" {
			absent = append(absent, name+" ("+h.Reason+")")
		}
	}
	return absent
}

// unloadFilters takes away all modules of packet filters.
func unloadFilters(t *testing.T) {
	t.Helper()
	for {
		loaded, removed := 0, 0
		list, err := os.ReadFile("/proc/modules")
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(list)) {
			name := strings.Fields(line)[0]
			if !filterModule(name) {
				continue
			}
			loaded++
			if unix.DeleteModule(name, unix.O_NONBLOCK) == nil {
				removed++
			}
		}
		if loaded == removed {
			break
		}
		if removed == 0 {
			t.Fatalf("cannot unload the filter's modules:\n%s", list)
		}
	}
	if _, err := os.Stat("/sys/module/nf_tables"); err == nil {
		t.Fatal("nf_tables is a part of this kernel, not a module")
	}
}

func filterModule(name string) bool {
	for _, prefix := range []string{"nf_", "nft_", "nfnetlink", "xt_", "x_tables", "ip_tables", "ip6_tables", "iptable_", "ip6table_", "ipt_", "ip6t_"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

// startAgent returns the flag that lets replypath ask an agent. It is the same one
// for all tests, started by the first: loading its programs takes seconds.
func startAgent(t *testing.T) (server []string) {
	t.Helper()
	started.once.Do(func() { started.server, started.err = started.start() })
	if started.err != nil {
		t.Fatalf("agent: %v\n%s", started.err, started.log.Bytes())
	}
	return started.server
}

// agent is a running replypath-agent.
type agent struct {
	once   sync.Once
	cmd    *exec.Cmd
	log    bytes.Buffer
	dir    string
	server []string
	err    error
}

var started agent

func (a *agent) start() (server []string, err error) {
	if a.dir, err = os.MkdirTemp("", "agent"); err != nil {
		return nil, err
	}
	socket := filepath.Join(a.dir, "agent.sock")
	a.cmd = exec.Command(program("replypath-agent"), "--listen", "unix://"+socket, "--metrics-listen", "")
	a.cmd.Stderr = &a.log
	if err := a.cmd.Start(); err != nil {
		return nil, err
	}
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if conn, err := net.Dial("unix", socket); err == nil {
			conn.Close()
			return []string{"--server", "unix://" + socket}, nil
		}
	}
	return nil, errors.New("it does not listen")
}

// stop ends the agent, which must not have failed by then. There need not be one.
func (a *agent) stop() error {
	if a.cmd == nil || a.cmd.Process == nil || a.cmd.ProcessState != nil {
		return nil
	}
	defer os.RemoveAll(a.dir)
	a.cmd.Process.Signal(syscall.SIGTERM)
	if err := a.cmd.Wait(); err != nil {
		return fmt.Errorf("agent: %w\n%s", err, a.log.Bytes())
	}
	return nil
}
