package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	tracev1 "github.com/replypath/replypath/api/trace/v1"
	"github.com/replypath/replypath/internal/agent"
)

func findingAnswer(id string) *tracev1.ExplainResponse {
	return &tracev1.ExplainResponse{Result: &tracev1.ExplainResponse_Finding{Finding: &tracev1.Finding{
		Id: id, Severity: "error", Direction: tracev1.Direction_REPLY, Where: &tracev1.Where{Netns: "backend"}, Count: 1}}}
}

func pathAnswer(answered bool) *tracev1.ExplainResponse {
	return &tracev1.ExplainResponse{Result: &tracev1.ExplainResponse_Path{Path: &tracev1.Path{
		Protocol: "tcp", Client: "10.0.0.1:1", Server: "10.0.0.2:2", Answered: answered}}}
}

func summaryAnswer(paths, findings uint32) *tracev1.ExplainResponse {
	verdict := "ok"
	if findings > 0 {
		verdict = "fault"
	}
	return &tracev1.ExplainResponse{Result: &tracev1.ExplainResponse_Summary{Summary: &tracev1.Summary{
		Verdict: verdict, Paths: paths, Findings: findings, Nodes: 1}}}
}

// testWorld is a world of buffers. Interrupts are what the test sends on the channel.
type testWorld struct {
	world
	out, err   buffer
	interrupts chan struct{}
}

func newTestWorld(args ...string) *testWorld {
	t := &testWorld{interrupts: make(chan struct{}, 1)}
	t.world = world{
		args: args, stdin: strings.NewReader(""), stdout: &t.out, stderr: &t.err,
		getenv:   func(string) string { return "" },
		euid:     func() int { return 1000 },
		terminal: func(any) (int, bool) { return 0, false },
		dial:     new(net.Dialer).DialContext,
		interruptible: func(ctx context.Context) (context.Context, context.CancelFunc) {
			ctx, cancel := context.WithCancel(ctx)
			go func() {
				select {
				case <-t.interrupts:
					cancel()
				case <-ctx.Done():
				}
			}()
			return ctx, cancel
		},
		trace: func(context.Context, embedding) error { return errors.New("not expected to trace") },
		zone:  time.UTC,
	}
	return t
}

func (t *testWorld) run() int { return run(context.Background(), t.world) }

// interruptWhen interrupts the command as soon as something is so.
func (t *testWorld) interruptWhen(so func() bool) {
	for !so() {
		time.Sleep(10 * time.Millisecond)
	}
	t.interrupts <- struct{}{}
}

// alone makes the world one where no agent runs.
func (t *testWorld) alone(euid int, trace func(context.Context, embedding) error) *testWorld {
	t.dial = func(context.Context, string, string) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Net: "unix", Err: os.NewSyscallError("connect", syscall.ENOENT)}
	}
	t.euid = func() int { return euid }
	t.trace = trace
	return t
}

// expect compares exit code and output; the wanted texts are regular expressions.
func (t *testWorld) expect(tb testing.TB, code, want int, stdout, stderr string) {
	tb.Helper()
	if code != want {
		tb.Errorf("exit code %d, want %d", code, want)
	}
	for name, c := range map[string]struct{ got, want string }{"stdout": {t.out.String(), stdout}, "stderr": {t.err.String(), stderr}} {
		if !regexp.MustCompile(`^(?s:` + c.want + `)$`).MatchString(c.got) {
			tb.Errorf("%s is %q, want %q", name, c.got, c.want)
		}
	}
}

func TestNoAgentWithoutRoot(t *testing.T) {
	for _, args := range [][]string{{"explain"}, {"watch"}, {"status"}, {"explain", "--", "true"}} {
		w := newTestWorld(args...).alone(1000, nil)
		w.expect(t, w.run(), exitNoAgent, "", `replypath: no agent runs here \(/run/replypath/agent.sock: no such file or directory\): `+
			`start replypath-agent, or run this as root \(sudo replypath …\) to trace without one\n`)
	}
}

func TestNotAllowed(t *testing.T) {
	w := newTestWorld("status")
	w.dial = func(context.Context, string, string) (net.Conn, error) { return nil, syscall.EACCES }
	w.expect(t, w.run(), exitNoAgent, "", `replypath: not allowed to ask the agent at unix:///run/replypath/agent.sock: run this as root .*\n`)
}

func TestNamedServerIsNotReplaced(t *testing.T) {
	w := newTestWorld("explain", "--server", "unix:///none").alone(0, nil)
	w.expect(t, w.run(), exitNoAgent, "", `replypath: no agent answers at unix:///none: no such file or directory\n`)

	w = newTestWorld("explain").alone(0, nil)
	w.getenv = func(name string) string { return map[string]string{"REPLYPATH_SERVER": "unix:///env"}[name] }
	w.expect(t, w.run(), exitNoAgent, "", `replypath: no agent answers at unix:///env: .*\n`)
}

func TestLabsTakeRoot(t *testing.T) {
	for _, args := range [][]string{{"run", "dsr-no-route"}, {"run", "--all"}, {"up", "dsr-no-route"}, {"down"}} {
		w := newTestWorld(append([]string{"lab"}, args...)...)
		w.expect(t, w.run(), exitNoAgent, "", `replypath: labs are made of network namespaces.*sudo\n`)
	}
}

// embeddedFake serves the fake as the agent of this process.
func embeddedFake(f *fakeTracer, stopped *bool) func(context.Context, embedding) error {
	return func(ctx context.Context, e embedding) error {
		stop := f.serve(e.listener)
		e.ready()
		<-ctx.Done()
		stop()
		*stopped = true
		return nil
	}
}

func TestEmbedded(t *testing.T) {
	const alone = `replypath: no agent at unix:///run/replypath/agent.sock: tracing in this process instead\n`
	cases := []struct {
		name, args     string
		interrupt      bool
		code           int
		stdout, stderr string
	}{
		{"for a time", "explain --for 10ms", false, exitFault, `x REPLY LOST.*1 fault in 1 connection\.\n`, `replypath: tracing for 10ms; Ctrl-C to stop early\n`},
		{"stopped early", "explain", true, exitFault, `x REPLY LOST.*`, `replypath: tracing for 10s; Ctrl-C to stop early\n`},
		{"command", "explain -- sh -c true", false, exitFault, `x REPLY LOST.*`, ``},
		{"watch", "watch", true, exitFault, `x REPLY LOST.*`, ``},
		{"status", "status", false, exitOK, `No node answered.\n`, ``},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			f := &fakeTracer{answers: []*tracev1.ExplainResponse{findingAnswer("reply-no-route"), summaryAnswer(1, 1)}, watch: untilGone}
			stopped := false
			w := newTestWorld(strings.Fields(tc.args)...).alone(0, embeddedFake(f, &stopped))
			if tc.interrupt {
				go w.interruptWhen(func() bool {
					return strings.Contains(w.err.String(), "Ctrl-C") || strings.Contains(w.out.String(), "LOST")
				})
			}
			start := time.Now()
			w.expect(t, w.run(), tc.code, tc.stdout, alone+tc.stderr)
			if !stopped {
				t.Error("the agent in this process was not stopped")
			}
			if took := time.Since(start); took > 9*time.Second {
				t.Errorf("took %v", took)
			}
			for _, q := range f.requests() {
				if q.GetSince().AsTime().Before(start.Add(-time.Second)) {
					t.Errorf("asked since %v, before the trace began", q.GetSince().AsTime())
				}
			}
		})
	}
}

func TestEmbeddedCannotTrace(t *testing.T) {
	cases := []struct {
		name  string
		trace func(context.Context, embedding) error
		want  string
	}{
		{"unsupported", func(context.Context, embedding) error { return fmt.Errorf("%w: no BTF", agent.ErrUnsupported) },
			`replypath: cannot trace here: no BTF\n`},
		{"other", func(context.Context, embedding) error { return errors.New("no memory") }, `replypath: start tracing: no memory\n`},
		{"silent", func(context.Context, embedding) error { return nil }, `replypath: tracing ended before it began\n`},
		{"dies later", func(_ context.Context, e embedding) error {
			e.ready()
			time.Sleep(50 * time.Millisecond)
			return errors.New("ring buffer gone")
		}, `replypath: tracing for 10s; Ctrl-C to stop early\nreplypath: tracing ended: ring buffer gone\n`},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			w := newTestWorld("explain").alone(0, tc.trace)
			w.expect(t, w.run(), exitNoAgent, "", `replypath: no agent at [^\n]*\n`+tc.want)
		})
	}
}

// TestCommandHasItsOwnProcessGroup compares the group that the agent is asked
// about with the one that the command found itself in.
func TestCommandHasItsOwnProcessGroup(t *testing.T) {
	f := &fakeTracer{answers: []*tracev1.ExplainResponse{findingAnswer("x"), summaryAnswer(1, 1)}, watch: untilGone}
	file := filepath.Join(t.TempDir(), "stat")
	w := newTestWorld("explain", "tcp", "and", "port", "80", "--server", f.socket(t), "--", "sh", "-c", "cat /proc/self/stat > "+file)
	before := time.Now()
	w.expect(t, w.run(), exitFault, "x REPLY LOST.*", "")
	stat, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	group, err := strconv.Atoi(strings.Fields(string(stat))[4]) // proc_pid_stat(5): pgrp
	if err != nil {
		t.Fatal(err)
	}
	q := f.requests()[0]
	if int(q.GetProcessGroup()) != group || group == syscall.Getpgrp() {
		t.Errorf("asked about group %d; the command was in %d and this test is in %d", q.GetProcessGroup(), group, syscall.Getpgrp())
	}
	if q.GetFilter() != "tcp and port 80" || !q.GetAll() || q.GetSince().AsTime().Before(before.Add(-time.Millisecond)) {
		t.Errorf("asked %v", q)
	}
}

// TestCommandWaitsForSlowFaults gives the finding only with the sixth answer.
func TestCommandWaitsForSlowFaults(t *testing.T) {
	f := &fakeTracer{watch: untilGone}
	f.explain = func(*tracev1.ExplainRequest) ([]*tracev1.ExplainResponse, error) {
		if len(f.requests()) < 6 {
			return []*tracev1.ExplainResponse{pathAnswer(false), summaryAnswer(1, 0)}, nil
		}
		return []*tracev1.ExplainResponse{findingAnswer("neighbor-unresolved"), summaryAnswer(1, 1)}, nil
	}
	w := newTestWorld("explain", "--server", f.socket(t), "--", "true")
	w.expect(t, w.run(), exitFault, "x REPLY LOST.*neighbor-unresolved.*", "")
}

func TestCommandSettles(t *testing.T) {
	const one, nothing = "No fault found in 1 connection.\n", "Nothing to explain.*"
	cases := []struct {
		name, command string
		answers       []*tracev1.ExplainResponse
		from, to      time.Duration
		stdout        string
	}{
		{"answered", "true", []*tracev1.ExplainResponse{pathAnswer(true), summaryAnswer(1, 0)}, settleTime, pendingTime, one},
		{"still waiting", "true", []*tracev1.ExplainResponse{pathAnswer(false), summaryAnswer(1, 0)}, pendingTime, pendingTime + 10*time.Second, one},
		{"answered, and failed", "false", []*tracev1.ExplainResponse{pathAnswer(true), summaryAnswer(1, 0)}, settleTime, pendingTime, one},
		{"nothing", "true", []*tracev1.ExplainResponse{summaryAnswer(0, 0)}, settleTime, pendingTime, nothing},
		{"nothing, and failed", "false", []*tracev1.ExplainResponse{summaryAnswer(0, 0)}, pendingTime, pendingTime + 10*time.Second, nothing},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			f := &fakeTracer{answers: tc.answers, watch: untilGone}
			w := newTestWorld("explain", "--server", f.socket(t), "--", tc.command)
			start := time.Now()
			w.expect(t, w.run(), exitOK, tc.stdout, ".*")
			if took := time.Since(start); took < tc.from || took > tc.to {
				t.Errorf("took %v, want %v to %v", took, tc.from, tc.to)
			}
		})
	}
}

// TestCommandWithoutConnections has faults of others around: they are told only
// to who names the connections that are meant.
func TestCommandWithoutConnections(t *testing.T) {
	cases := []struct {
		name, command, args string
		code                int
		stdout, stderr      string
	}{
		{"no filter", "true", "", exitOK, `Nothing to explain: no matching connection was seen \(TCP and UDP are traced\)\.\n`,
			`replypath: no connection of true was seen: another process may have made it, or no packet left\n`},
		{"it failed", "false", "", exitOK, `Nothing to explain: no matching connection was seen \(TCP and UDP are traced\)\.\n`,
			`replypath: false exited with status 1\nreplypath: no connection of false was seen: .*\nreplypath: a connection that fails at once .* ask .ip route get ADDRESS. there\n`},
		{"filter", "true", "port 80", exitFault, `x REPLY LOST.*`,
			`replypath: no connection of true itself matched the filter; this is all that matched it while true ran\n`},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			f := &fakeTracer{watch: untilGone}
			f.explain = func(q *tracev1.ExplainRequest) ([]*tracev1.ExplainResponse, error) {
				if q.GetProcessGroup() != 0 {
					return []*tracev1.ExplainResponse{summaryAnswer(0, 0)}, nil
				}
				return []*tracev1.ExplainResponse{findingAnswer("reply-no-route"), summaryAnswer(1, 1)}, nil
			}
			args := append([]string{"explain", "--server", f.socket(t)}, strings.Fields(tc.args)...)
			w := newTestWorld(append(args, "--", tc.command)...)
			w.expect(t, w.run(), tc.code, tc.stdout, tc.stderr)
		})
	}
}

// TestFailedCommandWaitsForItsNeighbour has a command give up while nothing has
// left yet: the kernel takes 3 s to give a neighbour up.
func TestFailedCommandWaitsForItsNeighbour(t *testing.T) {
	for _, script := range []string{"exit 28", "kill -TERM $$"} {
		t.Run(script, func(t *testing.T) {
			t.Parallel()
			f, start := &fakeTracer{watch: untilGone}, time.Now()
			f.explain = func(*tracev1.ExplainRequest) ([]*tracev1.ExplainResponse, error) {
				if time.Since(start) < 3*time.Second {
					return []*tracev1.ExplainResponse{summaryAnswer(0, 0)}, nil
				}
				return []*tracev1.ExplainResponse{findingAnswer("neighbor-unresolved"), summaryAnswer(1, 1)}, nil
			}
			w := newTestWorld("explain", "--server", f.socket(t), "--", "sh", "-c", script)
			w.expect(t, w.run(), exitFault, "x REPLY LOST.*neighbor-unresolved.*", "replypath: sh (exited with status 28|was ended by a signal: terminated)\n")
		})
	}
}

// TestAgentRestarted has an agent that cannot know how the time began.
func TestAgentRestarted(t *testing.T) {
	const note = `replypath: the agent was restarted meanwhile \(at [0-9:]+ on worker-1\): what happened before that was not seen\n`
	const tracing = `replypath: tracing for 10ms; Ctrl-C to stop early\n`
	cases := []struct {
		args           string
		started        time.Duration // from now
		stdout, stderr string
	}{
		{"-- true", time.Hour, `No fault found in 1 connection, but not everything was seen\.\n`, note},
		{"--for 10ms", time.Hour, `No fault found in 1 connection, but not everything was seen\.\n`, tracing + note},
		{"--for 10ms -o json", time.Hour, `{"summary":{"verdict":"incomplete","paths":1,.*\n`, tracing + note},
		{"--for 10ms", -time.Hour, `No fault found in 1 connection\.\n`, tracing},
		{"--since 2h", -time.Hour, `No fault found in 1 connection\.\n`, ""}, // it looks back as far as it can
	}
	for _, tc := range cases {
		t.Run(tc.args, func(t *testing.T) {
			f := &fakeTracer{answers: []*tracev1.ExplainResponse{pathAnswer(true), summaryAnswer(1, 0)}, watch: untilGone}
			f.nodes = []*tracev1.Node{{Name: "worker-1", Started: timestamppb.New(time.Now().Add(tc.started))}}
			w := newTestWorld(append([]string{"explain", "--server", f.socket(t)}, strings.Fields(tc.args)...)...)
			w.expect(t, w.run(), exitOK, tc.stdout, tc.stderr)
		})
	}
}

// TestRestartKeepsFaults: what was found was found.
func TestRestartKeepsFaults(t *testing.T) {
	f := &fakeTracer{answers: []*tracev1.ExplainResponse{findingAnswer("x"), summaryAnswer(1, 1)}, watch: untilGone}
	f.nodes = []*tracev1.Node{{Started: timestamppb.New(time.Now().Add(time.Hour))}}
	w := newTestWorld("explain", "-o", "json", "--server", f.socket(t), "--", "true")
	w.expect(t, w.run(), exitFault, `.*"verdict":"fault".*`, `replypath: the agent was restarted meanwhile \(at [0-9:]+\): .*\n`)
}

// TestInterruptedCommand ends a command that runs without a terminal, also one that does not heed SIGINT.
func TestInterruptedCommand(t *testing.T) {
	for script, ended := range map[string]string{
		`echo $$ > "$0"; exec sleep 60`:                                  "interrupt",
		`trap "" INT; echo $$ > "$0"; while :; do sleep 60 & wait; done`: "killed",
	} {
		t.Run(ended, func(t *testing.T) {
			f := &fakeTracer{answers: []*tracev1.ExplainResponse{findingAnswer("x"), summaryAnswer(1, 1)}, watch: untilGone}
			file := filepath.Join(t.TempDir(), "pid")
			w := newTestWorld("explain", "--server", f.socket(t), "--", "sh", "-c", script, file)
			go w.interruptWhen(func() bool {
				_, err := os.Stat(file)
				return err == nil
			})
			w.expect(t, w.run(), exitFault, "x REPLY LOST.*", "replypath: sh was ended by a signal: "+ended+"\n")
			if pid, err := os.ReadFile(file); err == nil {
				group, _ := strconv.Atoi(strings.TrimSpace(string(pid)))
				if !gone(group) {
					t.Errorf("process group %d is still there", group)
				}
			}
		})
	}
}

// TestInterruptedBeforeTheCommand has Ctrl-C pressed before anything runs.
func TestInterruptedBeforeTheCommand(t *testing.T) {
	f := &fakeTracer{watch: untilGone}
	file := filepath.Join(t.TempDir(), "ran")
	w := newTestWorld("explain", "--server", f.socket(t), "--", "touch", file)
	w.interruptible = func(ctx context.Context) (context.Context, context.CancelFunc) {
		ctx, cancel := context.WithCancel(ctx)
		cancel()
		return ctx, cancel
	}
	w.expect(t, w.run(), exitNoAgent, "", "replypath: interrupted\n")
	if _, err := os.Stat(file); err == nil {
		t.Error("the command ran")
	}
}

// gone waits until a process group has no members.
func gone(group int) bool {
	for range 100 {
		if errors.Is(syscall.Kill(-group, 0), syscall.ESRCH) {
			return true
		}
		time.Sleep(20 * time.Millisecond)
	}
	return false
}

func TestAgentRefusesFilter(t *testing.T) {
	f := &fakeTracer{watch: func(context.Context) error { return status.Error(codes.InvalidArgument, "filter: too long") }}
	f.explain = func(*tracev1.ExplainRequest) ([]*tracev1.ExplainResponse, error) {
		return nil, status.Error(codes.InvalidArgument, "filter: too long")
	}
	for _, args := range []string{"explain", "watch", "explain --follow"} {
		w := newTestWorld(append(strings.Fields(args), "--server", f.socket(t))...)
		w.expect(t, w.run(), exitUsage, "", `replypath: filter: too long \(see 'replypath .* --help'\)\n`)
	}
}

func TestAgentGoesAway(t *testing.T) {
	f := &fakeTracer{
		answers: []*tracev1.ExplainResponse{findingAnswer("reply-no-route")}, // no summary: broken off
		watch:   func(context.Context) error { return status.Error(codes.Unavailable, "shutting down") },
	}
	w := newTestWorld("watch", "--server", f.socket(t))
	w.expect(t, w.run(), exitNoAgent, `x REPLY LOST.*`, `replypath: the agent went away: no answer from the agent at unix://.*: shutting down\n`)

	w = newTestWorld("explain", "--server", f.socket(t))
	w.expect(t, w.run(), exitNoAgent, "", `replypath: the agent at unix://.* broke off its answer\n`)
}

func TestWatchTellsLoss(t *testing.T) {
	p := newTestWorld().printer(formatText)
	out := new(buffer)
	p.out = out
	m := &tracev1.WatchResponse{Result: &tracev1.WatchResponse_LostEvents{LostEvents: &tracev1.LostEvents{Count: 3, Cause: "slow reader"}}}
	if err := p.live(m, map[string]uint32{}); err != nil || !strings.Contains(out.String(), "3 messages were lost (slow reader)") {
		t.Errorf("live: %v, %q", err, out.String())
	}
}

// TestWatchOfOneFaultIsBrief lets a fault be met again and again.
func TestWatchOfOneFaultIsBrief(t *testing.T) {
	for format, want := range map[format]string{
		formatText: "full again again again full",
		formatJSON: "full full full full full full full full full",
	} {
		p := newTestWorld().printer(format)
		shown := make(map[string]uint32)
		var got []string
		for _, count := range []uint32{1, 1, 2, 3, 4, 5, 6, 7, 8, 2} {
			out := new(buffer)
			p.out = out
			f := findingAnswer("reply-no-route").GetFinding()
			f.Count = count
			if err := p.live(&tracev1.WatchResponse{Result: &tracev1.WatchResponse_Finding{Finding: f}}, shown); err != nil {
				t.Fatal(err)
			}
			switch text := out.String(); {
			case strings.Contains(text, "AGAIN"):
				got = append(got, "again")
			case text != "":
				got = append(got, "full")
			}
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s: printed %v, want %s", format, got, want)
		}
	}
}

func TestColorOnTerminalOnly(t *testing.T) {
	for name, tc := range map[string]struct {
		tty  bool
		env  map[string]string
		want bool
	}{
		"terminal": {true, nil, true},
		"NO_COLOR": {true, map[string]string{"NO_COLOR": "1"}, false},
		"dumb":     {true, map[string]string{"TERM": "dumb"}, false},
		"file":     {false, nil, false},
	} {
		w := newTestWorld()
		w.getenv = func(name string) string { return tc.env[name] }
		w.terminal = func(any) (int, bool) { return 80, tc.tty }
		if got := w.text().Color; got != tc.want {
			t.Errorf("%s: colour %v, want %v", name, got, tc.want)
		}
	}
}

// closedPipe is a stdout whose reader has gone.
type closedPipe struct{}

func (closedPipe) Write([]byte) (int, error) {
	return 0, &os.PathError{Op: "write", Err: syscall.EPIPE}
}

func TestReaderGone(t *testing.T) {
	f := &fakeTracer{answers: []*tracev1.ExplainResponse{findingAnswer("x"), summaryAnswer(1, 1)}, watch: untilGone}
	for _, args := range []string{"explain", "explain -o json", "watch", "explain -f"} {
		w := newTestWorld(append(strings.Fields(args), "--server", f.socket(t))...)
		w.stdout = closedPipe{}
		w.expect(t, w.run(), exitFault, "", "")
	}
	w := newTestWorld("version")
	w.stdout = closedPipe{}
	w.expect(t, w.run(), exitOK, "", "")
}
