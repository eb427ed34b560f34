package lab_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/replypath/replypath/internal/lab"
)

// atOnce is how many labs are run at the same time: each is a busy neighbour of the others.
const atOnce = 12

// mayGoWrong is how many of all labs may go wrong beside others, for a lack of processor time.
const mayGoWrong = 4

// told is what `replypath lab run NAME -o json` gave.
type told struct {
	exit     int
	findings []finding
	summary  *summary
	stderr   string
	err      error // it could not be run, or told something that is not JSON lines
}

type finding struct {
	ID         string   `json:"id"`
	Direction  string   `json:"direction"`
	Cause      string   `json:"cause"`
	Fix        []string `json:"fix"`
	Verify     []string `json:"verify"`
	Confidence string   `json:"confidence"`
	Where      struct {
		Netns string `json:"netns"`
	} `json:"where"`
	Path struct {
		Protocol string `json:"protocol"`
		Client   string `json:"client"`
		Server   string `json:"server"`
	} `json:"path"`
	Evidence    []json.RawMessage `json:"evidence"`
	Connections []struct {
		Client string `json:"client"`
	} `json:"connections"`
	Omitted int `json:"connections_omitted"`
}

type summary struct {
	Verdict string          `json:"verdict"`
	Losses  json.RawMessage `json:"losses"`
}

// TestEndToEnd runs every lab with the real programs: one agent, and a
// `replypath lab run` for each. It must find what the lab says, where it says
// so, and nothing else. With -short, one lab of each finding and family.
//
// A few that go wrong beside others may have been starved of processor time:
// these are run once more, by themselves.
func TestEndToEnd(t *testing.T) {
	needRoot(t)
	server := startAgent(t)
	cli := program(t, "replypath", "cli")
	labs := chosen(testing.Short())
	results := make([]told, len(labs))
	var running sync.WaitGroup
	slots := make(chan struct{}, atOnce)
	for i, l := range labs {
		running.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			results[i] = run(t.Context(), cli, server, l.Name)
		})
	}
	running.Wait()
	again := mayGoWrong
	for i, l := range labs {
		t.Run(l.Name, func(t *testing.T) {
			if missing := l.Missing(); missing != "" {
				t.Skipf("needs %s", missing)
			}
			if wrong := wrongs(l, results[i]); len(wrong) > 0 && again > 0 {
				again--
				t.Logf("wrong beside others, once more by itself: %s", strings.Join(wrong, "; "))
				results[i] = run(t.Context(), cli, server, l.Name)
			}
			check(t, l, results[i])
		})
	}
}

// TestEndToEndAlone runs labs without an agent: the program traces for itself.
func TestEndToEndAlone(t *testing.T) {
	needRoot(t)
	cli := program(t, "replypath", "cli")
	for _, name := range []string{"dsr-no-route", "nat6-healthy"} {
		t.Run(name, func(t *testing.T) {
			l, ok := lab.Find(name)
			if !ok {
				t.Fatalf("no lab %s", name)
			}
			check(t, l, run(t.Context(), cli, "", name))
		})
	}
}

// TestTraceRules has nftables itself name the rule.
func TestTraceRules(t *testing.T) {
	needRoot(t)
	cli := program(t, "replypath", "cli")
	names := []string{"nat6-forward-drop", "local-input-policy", "routed-forward-drop", "asym-reply-drop", "dsr-ingress-drop"}
	if testing.Short() {
		names = names[:1]
	}
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			l, ok := lab.Find(name)
			if !ok {
				t.Fatalf("no lab %s", name)
			}
			r := run(t.Context(), cli, "", name, "--trace-rules")
			if r.exit == 3 && strings.Contains(r.stderr, "cannot tie an nftables table to its owner") {
				t.Skip("this kernel cannot tie an nftables table to its owner")
			}
			check(t, l, r)
			if len(r.findings) == 1 && !strings.Contains(fmt.Sprintf("%s", r.findings[0].Evidence), "nftables' own trace: ") {
				t.Errorf("nftables did not tell: %s\n%s", r.findings[0].Evidence, r.stderr)
			}
			if !strings.Contains(r.stderr, "added table replypath-trace") {
				t.Errorf("nothing is said of what was added:\n%s", r.stderr)
			}
		})
	}
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: creates network namespaces and loads eBPF")
	}
}

// program returns the path of one of the programs: that in REPLYPATH_BIN, where
// `make` says that it has built them, or one compiled now.
func program(t *testing.T, name, source string) string {
	t.Helper()
	if dir := os.Getenv("REPLYPATH_BIN"); dir != "" {
		return filepath.Join(dir, name)
	}
	path := filepath.Join(t.TempDir(), name)
	out, err := exec.CommandContext(t.Context(), "go", "build", "-o", path, "../../cmd/"+source).CombinedOutput()
	if err != nil {
		t.Fatalf("build %s: %v\n%s", name, err, out)
	}
	return path
}

// startAgent starts an agent on a socket of its own, which it returns, and
// stops it at the end of the test.
func startAgent(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "replypath") // t.TempDir may be too long for a socket's address
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "agent.sock")
	var log bytes.Buffer
	agent := exec.Command(program(t, "replypath-agent", "agent"), "--listen", "unix://"+socket, "--metrics-listen", "",
		"--max-bytes", "67108864") // it meets more faults in two minutes than a node does in a month
	agent.Stderr = &log
	if err := agent.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		agent.Process.Signal(syscall.SIGTERM)
		if err := agent.Wait(); err != nil {
			t.Errorf("agent: %v\n%s", err, log.Bytes())
		}
	})
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if conn, err := net.Dial("unix", socket); err == nil {
			conn.Close()
			return "unix://" + socket
		}
	}
	t.Fatal("the agent does not answer on its socket")
	return ""
}

// chosen are the labs to run.
func chosen(short bool) []lab.Lab {
	if !short {
		return lab.All()
	}
	var labs []lab.Lab
	seen := map[string]bool{}
	for _, l := range lab.All() {
		kind := fmt.Sprint(l.Finding, l.Topology.Family)
		if !seen[kind] {
			seen[kind] = true
			labs = append(labs, l)
		}
	}
	return labs
}

// run runs one lab. With server "", it uses the machine's agent if there is one, else traces for itself.
func run(ctx context.Context, cli, server, name string, more ...string) (r told) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	command := exec.CommandContext(ctx, cli, append([]string{"lab", "run", name, "-o", "json", "--server=" + server}, more...)...)
	command.Cancel = func() error { return command.Process.Signal(os.Interrupt) } // it then removes its lab
	command.WaitDelay = 10 * time.Second
	command.Env = append(os.Environ(), "REPLYPATH_SERVER=")
	var stdout, stderr bytes.Buffer
	command.Stdout, command.Stderr = &stdout, &stderr
	err := command.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		r.err = err
		return r
	}
	r.exit, r.stderr = command.ProcessState.ExitCode(), stderr.String()
	r.err = r.read(stdout.Bytes())
	return r
}

// read reads JSON lines.
func (r *told) read(out []byte) error {
	for line := range bytes.Lines(out) {
		var message struct {
			Finding *finding `json:"finding"`
			Summary *summary `json:"summary"`
		}
		if err := json.Unmarshal(line, &message); err != nil {
			return fmt.Errorf("read %q: %w", line, err)
		}
		if message.Finding != nil {
			r.findings = append(r.findings, *message.Finding)
		}
		if message.Summary != nil {
			r.summary = message.Summary
		}
	}
	return nil
}

// check fails when what was told is not what there is.
func check(t *testing.T, l lab.Lab, r told) {
	t.Helper()
	for _, wrong := range wrongs(l, r) {
		t.Error(wrong)
	}
}

// wrongs says how what was told differs from what there is.
func wrongs(l lab.Lab, r told) (wrong []string) {
	say := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	switch {
	case r.err != nil:
		say("%v; stderr:\n%s", r.err, r.stderr)
		return wrong
	case r.summary == nil:
		say("no summary; exit %d; stderr:\n%s", r.exit, r.stderr)
		return wrong
	case l.Healthy():
		if len(r.findings) > 0 || r.exit != 0 || r.summary.Verdict != "ok" {
			say("healthy, but exit %d, verdict %s, lost %s: %s", r.exit, r.summary.Verdict, r.summary.Losses, list(r.findings))
		}
		return wrong
	}
	if r.exit != 1 || r.summary.Verdict != "fault" {
		say("exit %d, verdict %s, want 1 and fault; stderr:\n%s", r.exit, r.summary.Verdict, r.stderr)
	}
	if len(r.findings) != 1 {
		say("%d findings, want one %s: %s", len(r.findings), l.Finding, list(r.findings))
		return wrong
	}
	return append(wrong, wrongFinding(l, &r.findings[0])...)
}

// wrongFinding is wrongs of a faulty lab's finding.
func wrongFinding(l lab.Lab, f *finding) (wrong []string) {
	say := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	if f.ID != l.Finding || f.Direction != l.Direction.String() {
		say("found %s %s, want %s %s", f.ID, f.Direction, l.Finding, l.Direction)
	}
	where := regexp.MustCompile("^rplab-" + l.Name + "-[0-9a-f]{4}-" + l.Where + "$")
	if !where.MatchString(f.Where.Netns) {
		say("where is %q, want %s", f.Where.Netns, where)
	}
	protocol := "tcp"
	if l.Topology.Client.UDP && l.Finding != "dns-tcp-fallback-blocked" {
		protocol = "udp"
	}
	if server := l.Topology.Client.Server.String(); f.Path.Server != server || f.Path.Protocol != protocol {
		say("path to %s %s, but the client asked %s %s", f.Path.Protocol, f.Path.Server, protocol, server)
	}
	if !strings.Contains(f.Path.Client, clientAddress(l)) {
		say("path from %s, but the client is %s", f.Path.Client, clientAddress(l))
	}
	if f.Cause == "" || len(f.Fix) == 0 || len(f.Verify) == 0 || f.Confidence == "" || len(f.Evidence) == 0 {
		say("a finding without cause, fix, verify, confidence or evidence: %+v", f)
	}
	return wrong
}

// clientAddress is the address that the lab's client has.
func clientAddress(l lab.Lab) string {
	for _, h := range l.Topology.Hosts {
		if h.Name == l.Topology.Client.Host {
			return h.Addresses[0].Prefix.Addr().String()
		}
	}
	return "nobody"
}

// list tells findings in a line.
func list(findings []finding) string {
	var all []string
	for _, f := range findings {
		all = append(all, f.ID+" "+f.Direction+" at "+f.Where.Netns)
	}
	return strings.Join(all, ", ")
}
