//go:build vm

package vm

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
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

// Open vSwitch's module is loaded when its daemon starts, which may be after the
// agent, too. Why the datapath could not ask its daemon is told by a function of it.
func TestSwitchAppearsLater(t *testing.T) {
	const hook = "openvswitch:ovs_dp_upcall"
	if _, err := os.Stat("/sys/module/openvswitch"); err == nil {
		t.Fatal("openvswitch is loaded already")
	}
	t.Cleanup(func() {
		// With it, older kernels put fragments together in all namespaces.
		if out, err := exec.Command("modprobe", "-r", "openvswitch").CombinedOutput(); err != nil {
			t.Errorf("modprobe -r openvswitch: %v: %s", err, out)
		}
	})
	server := startAgent(t)
	before := statusOf(t, server...)
	if h, found := before.named(hook); before.Tier == "plus" && (!found || h.State != "absent" || h.Reason != "module openvswitch is not loaded; attached when it is") {
		t.Errorf("before: %+v", h)
	}
	if out, err := exec.Command("modprobe", "openvswitch").CombinedOutput(); err != nil {
		t.Fatalf("modprobe openvswitch: %v: %s", err, out)
	}
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(time.Second) {
		if h, _ := statusOf(t, server...).named(hook); h.State != "absent" {
			break
		}
	}
	if h, _ := statusOf(t, server...).named(hook); before.Tier == "plus" && h.State != "attached" {
		t.Errorf("after: %+v", h)
	}
	explain(t, server, "switched-no-daemon")
	condition{name: "module openvswitch loaded after the agent started"}.note(t, "")
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

// startAgent starts an agent, stops it when the test ends, and returns the flag
// that lets replypath ask it.
func startAgent(t *testing.T) (server []string) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "agent.sock")
	agent := exec.Command(program("replypath-agent"), "--listen", "unix://"+socket, "--metrics-listen", "")
	var log bytes.Buffer
	agent.Stderr = &log
	if err := agent.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		agent.Process.Signal(syscall.SIGTERM)
		if err := agent.Wait(); err != nil || t.Failed() {
			t.Errorf("agent: %v\n%s", err, log.Bytes())
		}
	})
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if conn, err := net.Dial("unix", socket); err == nil {
			conn.Close()
			return []string{"--server", "unix://" + socket}
		}
	}
	t.Fatal("the agent does not listen")
	return nil
}
