//go:build vm

package vm

import (
	"os"
	"os/exec"
	"testing"
	"time"
)

// Open vSwitch's module is loaded when its daemon starts, which may be after the
// agent, too. Why the datapath could not ask its daemon is told by a function of it.
// This test comes last of those that ask the agent, and ends it.
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
	t.Cleanup(func() { // as long as it runs, the module cannot go
		if err := started.stop(); err != nil {
			t.Error(err)
		}
	})
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
