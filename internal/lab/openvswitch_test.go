package lab

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestSwitchesGoWithTheirLab: the daemons are checked by checkGone, for each lab.
func TestSwitchesGoWithTheirLab(t *testing.T) {
	needRoot(t)
	l, _ := Find("antrea-healthy")
	if missing := l.Missing(); missing != "" {
		t.Skipf("needs %s", missing)
	}
	n := up(t, "antrea-healthy")
	state := filepath.Join(stateDir, n.id)
	if _, err := os.Stat(filepath.Join(state, "endpoint", "db.sock")); err != nil {
		t.Fatalf("the switch is not in a directory of its own: %v", err)
	}
	if err := n.Detach(); err != nil {
		t.Fatal(err)
	}
	removed, err := DownAll(t.Context())
	if err != nil || !strings.Contains(strings.Join(removed, " "), n.id) {
		t.Fatalf("DownAll removed %v (%v), want %s", removed, err, n.id)
	}
	if _, err := os.Stat(state); !os.IsNotExist(err) {
		t.Errorf("%s is left behind", state)
	}
	// Files whose namespaces somebody else has removed go too.
	if err := os.MkdirAll(filepath.Join(state, "endpoint"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := DownAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(state); !os.IsNotExist(err) {
		t.Errorf("%s is left behind", state)
	}
}

// TestMissing says what a machine without Open vSwitch lacks.
func TestMissing(t *testing.T) {
	t.Setenv("PATH", "/nowhere")
	if findProgramFails() {
		if l, _ := Find("antrea-healthy"); l.Missing() != noSwitch {
			t.Errorf("Missing() = %q, want %q", l.Missing(), noSwitch)
		}
	}
	if l, _ := Find("dsr-healthy"); l.Missing() != "" {
		t.Errorf("dsr-healthy misses %q", l.Missing())
	}
}

func findProgramFails() bool {
	_, err := findProgram("ovs-vswitchd")
	return err != nil
}
