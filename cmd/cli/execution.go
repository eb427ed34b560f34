package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/timestamppb"

	tracev1 "github.com/replypath/replypath/api/trace/v1"
)

// interruptGrace is how long a command may take to end after Ctrl-C before it is killed.
const interruptGrace = 3 * time.Second

// execution is a run of the user's command.
type execution struct {
	group uint32 // process group of its own
	start time.Time
	ended string // how it ended, if that is worth telling
	// failed: by its exit status or by a signal.
	failed bool
}

// explainCommand runs a command and explains what became of its connections.
func (w *world) explainCommand(ctx context.Context, s *server, o explainOptions) error {
	program, err := exec.LookPath(o.command[0])
	if err != nil {
		return usagef("run %q: %w", o.command[0], innermost(err))
	}
	running, stopRunning := w.interruptible(ctx)
	defer stopRunning()
	conn, err := s.connect(running)
	if err != nil {
		return err
	}
	defer conn.close()
	run, err := w.execute(running, program, o.command)
	switch {
	case err != nil && running.Err() != nil:
		return noAgentf("interrupted")
	case err != nil:
		return usagef("run %q: %w", o.command[0], innermost(err))
	}
	if run.ended != "" {
		w.note("%s", run.ended)
	}
	asking, stop := w.interruptible(ctx)
	defer stop()
	a, err := conn.explainRun(asking, w, run, o)
	if err != nil {
		return err
	}
	if !o.all {
		a.paths = nil
	}
	return w.printer(o.output).whole(a)
}

// innermost is the cause of an error without the names around it.
func innermost(err error) error {
	for next := err; next != nil; next = errors.Unwrap(next) {
		err = next
	}
	return err
}

// explainRun asks for the command's own connections. If there are none and the
// user said which connections are meant, it asks for those that were seen while
// the command ran: a daemon may have connected for it. Without a filter others'
// connections are nobody's business here.
func (c *connection) explainRun(ctx context.Context, w *world, run *execution, o explainOptions) (*answer, error) {
	q := &tracev1.ExplainRequest{Filter: o.filter, Since: timestamppb.New(run.start), All: true, ProcessGroup: run.group}
	// A command that failed with nothing seen may have given up before its
	// neighbour did: until then there is no packet.
	more := func(a *answer) bool { return a.pending() || run.failed && !a.seen() }
	a, err := usualPatience.settled(ctx, func(ctx context.Context) (*answer, error) { return c.ask(ctx, q) }, more)
	switch {
	case err != nil:
		return nil, err
	case a.seen():
	case o.filter == "":
		w.note("no connection of %s was seen: another process may have made it, or no packet left", o.command[0])
		run.hint(w)
	default:
		run.hint(w)
		w.note("no connection of %s itself matched the filter; this is all that matched it while %s ran", o.command[0], o.command[0])
		q.ProcessGroup = 0
		if a, err = c.ask(ctx, q); err != nil {
			return nil, err
		}
	}
	c.admitRestart(ctx, w, run.start, a)
	return a, nil
}

// hint tells how a command can fail without a packet. It is no finding: whoever has
// addresses of two families tries one that has no route, and goes on with the other.
func (r *execution) hint(w *world) {
	if r.failed {
		w.note("a connection that fails at once (\"network is unreachable\", \"invalid argument\") had no route where the command ran, or a route there refused it: ask `ip route get ADDRESS` there")
	}
}

// execute runs the command to its end. It has a process group of its own, by
// which its connections are known. On a terminal that group becomes the
// foreground one, so that prompts and Ctrl-C reach the command. When the
// context ends, the group is interrupted and, if it does not heed that, killed.
// If this process is killed, the kernel sends the command SIGTERM: that is when
// the thread that started it ends (prctl(2), PR_SET_PDEATHSIG), so the thread is
// kept for as long as the command runs.
func (w *world) execute(ctx context.Context, program string, argv []string) (*execution, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.CommandContext(ctx, program)
	cmd.Args = argv
	cmd.Stdin, cmd.Stdout, cmd.Stderr = w.stdin, w.stderr, w.stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGINT) }
	cmd.WaitDelay = interruptGrace
	tty := w.foreground()
	if tty != nil {
		cmd.SysProcAttr.Foreground, cmd.SysProcAttr.Ctty = true, int(tty.Fd())
	}
	run := &execution{start: time.Now()}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	if tty != nil {
		defer retake(tty)()
	}
	run.group = uint32(cmd.Process.Pid)
	err := cmd.Wait()
	if ctx.Err() != nil {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // what is left of the group
	}
	run.failed = cmd.ProcessState == nil || !cmd.ProcessState.Success()
	run.ended = endTold(argv[0], cmd.ProcessState, err)
	return run, nil
}

// foreground returns stdin if it is a terminal and this process has it at its
// disposal: a job in the background must not take it.
func (w *world) foreground() *os.File {
	f, ok := w.stdin.(*os.File)
	if !ok {
		return nil
	}
	if _, tty := w.terminal(f); !tty {
		return nil
	}
	if group, err := unix.IoctlGetInt(int(f.Fd()), unix.TIOCGPGRP); err != nil || group != unix.Getpgrp() {
		return nil
	}
	return f
}

// retake lets this process write to and take back a terminal whose foreground
// group is another; what it returns takes it back. SIGTTOU, which would stop
// us, is ignored between the two: after the command was started, so that the
// command does not inherit that.
func retake(tty *os.File) func() {
	signal.Ignore(syscall.SIGTTOU)
	return func() {
		// An error means that the terminal has gone, and there is nothing to take back.
		_ = unix.IoctlSetPointerInt(int(tty.Fd()), unix.TIOCSPGRP, unix.Getpgrp())
		signal.Reset(syscall.SIGTTOU)
	}
}

// endTold says how a command ended, unless it was well.
func endTold(name string, state *os.ProcessState, err error) string {
	if state == nil {
		return fmt.Sprintf("%s: %v", name, err)
	}
	if status, ok := state.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return fmt.Sprintf("%s was ended by a signal: %v", name, status.Signal())
	}
	if code := state.ExitCode(); code != 0 {
		return fmt.Sprintf("%s exited with status %d", name, code)
	}
	if errors.Is(err, exec.ErrWaitDelay) {
		return fmt.Sprintf("%s has ended, and something that it started still writes", name)
	}
	return ""
}
