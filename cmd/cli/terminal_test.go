package main

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	tracev1 "github.com/replypath/replypath/api/trace/v1"
)

// openPTY returns a pseudo terminal: who sits at it, and what a program has as stdin.
func openPTY(t *testing.T) (user, program *os.File) {
	t.Helper()
	user, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { user.Close() })
	if err := unix.IoctlSetPointerInt(int(user.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(user.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	program, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { program.Close() })
	return user, program
}

// TestInterruptAtTerminal types Ctrl-C while the command runs: that ends the
// command, and its packets are explained all the same.
func TestInterruptAtTerminal(t *testing.T) {
	agent := &fakeTracer{answers: []*tracev1.ExplainResponse{findingAnswer("reply-no-route"), summaryAnswer(1, 1)}, watch: untilGone}
	user, program := openPTY(t)
	cmd := exec.Command("replypath", "explain", "--server", agent.socket(t), "--", "sh", "-c", "echo started; exec sleep 60")
	var stdout buffer
	cmd.Stdin, cmd.Stdout = program, &stdout
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	giveUp := time.AfterFunc(20*time.Second, func() { cmd.Process.Kill() })
	defer giveUp.Stop()
	var told []string
	for lines := bufio.NewScanner(stderr); lines.Scan(); {
		told = append(told, lines.Text())
		if lines.Text() == "started" {
			user.Write([]byte{3})
		}
	}
	cmd.Wait()
	if got := cmd.ProcessState.ExitCode(); got != exitFault {
		t.Errorf("exit code %d, want %d", got, exitFault)
	}
	if want := "replypath: sh was ended by a signal: interrupt"; len(told) != 2 || told[1] != want {
		t.Errorf("stderr %q, want %q after the command's own line", told, want)
	}
	if !strings.Contains(stdout.String(), "REPLY LOST") {
		t.Errorf("not explained: %q", stdout.String())
	}
}
