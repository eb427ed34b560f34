package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	tracev1 "github.com/replypath/replypath/api/trace/v1"
)

// TestKilledWithItsCommand kills replypath without a chance to clean up: the
// command is told to end, and not before.
func TestKilledWithItsCommand(t *testing.T) {
	agent := &fakeTracer{answers: []*tracev1.ExplainResponse{summaryAnswer(0, 0)}, watch: untilGone}
	dir := t.TempDir()
	started, ended := filepath.Join(dir, "started"), filepath.Join(dir, "ended")
	script := fmt.Sprintf(`trap 'echo TERM > %s; exit' TERM; echo $$ > %s.new; mv %s.new %s; while :; do sleep 0.1; done`, ended, started, started, started)
	cmd := exec.Command("replypath", "explain", "--server", agent.socket(t), "--", "sh", "-c", script)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	pid := readPID(t, started)
	defer syscall.Kill(-pid, syscall.SIGKILL) // the group, if the test fails
	time.Sleep(time.Second)                   // idle threads come and go meanwhile
	if !alive(pid) {
		t.Fatal("the command ended before replypath did")
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	for range 250 {
		if !alive(pid) {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if alive(pid) {
		t.Errorf("process %d outlived replypath", pid)
	}
	if got, err := os.ReadFile(ended); string(got) != "TERM\n" {
		t.Errorf("the command was not sent SIGTERM: %q, %v", got, err)
	}
}

// readPID waits for a file with a process number.
func readPID(t *testing.T, file string) int {
	t.Helper()
	for range 500 {
		if text, err := os.ReadFile(file); err == nil {
			pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
			if err != nil {
				t.Fatal(err)
			}
			return pid
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatal("the command did not start")
	return 0
}

// alive reports whether a process is there and no zombie (proc_pid_stat(5)):
// who becomes the parent of an orphan may be slow to reap it.
func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, state, _ := bytes.Cut(stat, []byte(") "))
	return len(state) > 0 && state[0] != 'Z' && state[0] != 'X'
}
