package lab_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/replypath/replypath/internal/lab"
)

// TestCheckReply asks the real `replypath check reply` at every lab's answering
// host, with the faults in place and before there is any traffic: it must
// foretell the finding that the lab gives, at the same place, and be silent
// where the lab is healthy.
func TestCheckReply(t *testing.T) {
	needRoot(t)
	cli := program(t, "replypath", "cli")
	slots := make(chan struct{}, atOnce)
	for _, l := range chosen(testing.Short()) {
		t.Run(l.Name, func(t *testing.T) {
			t.Parallel()
			if missing := l.Missing(); missing != "" {
				t.Skipf("needs %s", missing)
			}
			slots <- struct{}{}
			r := foretell(t.Context(), cli, l)
			<-slots
			checkForetold(t, l, r)
			if t.Failed() {
				t.Logf("stderr:\n%s", r.stderr)
			}
		})
	}
}

// checkForetold compares what was foretold with what there is. What cannot be
// known must not be taken for sound where that is seen.
func checkForetold(t *testing.T, l lab.Lab, r told) {
	t.Helper()
	if l.Unforeseen == "" || r.err != nil {
		check(t, l, r)
		return
	}
	if len(r.findings) > 0 {
		t.Errorf("cannot be known (%s), and foretold: %s", l.Unforeseen, list(r.findings))
	}
	t.Logf("%s: verdict %s\n%s", l.Unforeseen, r.summary.Verdict, r.stderr)
}

// foretell builds a lab, asks, and removes it.
func foretell(ctx context.Context, cli string, l lab.Lab) (r told) {
	n, err := lab.Up(ctx, l, nil)
	if err != nil {
		return told{err: err}
	}
	defer func() { r.err = errors.Join(r.err, n.Down()) }()
	answering := n.Namespaces()[l.Topology.Services[0].Host]
	protocol := "tcp"
	if l.Topology.Client.UDP {
		protocol = "udp"
	}
	return ask(ctx, cli, "check", "reply", "-o", "json", "--netns", answering, "--protocol", protocol,
		"--vip", l.Topology.Client.Server.String(), "--client", net.JoinHostPort(clientAddress(l), "41000"))
}

// ask runs the program and reads its JSON lines.
func ask(ctx context.Context, cli string, args ...string) (r told) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	command := exec.CommandContext(ctx, cli, args...)
	command.Env = append(os.Environ(), "REPLYPATH_SERVER=")
	var stdout, stderr bytes.Buffer
	command.Stdout, command.Stderr = &stdout, &stderr
	err := command.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return told{err: err}
	}
	r.exit, r.stderr = command.ProcessState.ExitCode(), stderr.String()
	r.err = r.read(stdout.Bytes())
	return r
}
