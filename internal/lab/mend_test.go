package lab_test

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/replypath/replypath/internal/lab"
)

// mended are labs whose finding names commands that mend the fault as they stand:
// one or two of each finding that has such commands.
var mended = []string{
	"dsr-no-route", "nat6-no-route", "dsr-blackhole", "routed-rule-prohibit",
	"routed-request-no-route", "routed6-request-no-route", "nat-tunnel-request-no-route", "dsr-udp-request-no-route", "routed-request-blackhole",
	"dsr-tunnel-rp-filter-backend", "routed-forwarding", "dsr-vip-missing", "multihomed-policy-dropped", "antrea-wrong-default",
	"dsr-own-source", "nat-notrack", "nat6-udp-notrack", "asym-masquerade", "dsr6-untracked-snat", "dsr-no-snat",
	"routed-loop", "local-stale-neighbor", "nat-forward-drop", "local6-input-policy", "routed-xdp",
}

// TestFixMends runs the commands that a finding gives, as an operator who copies
// them: the same traffic must then get through.
func TestFixMends(t *testing.T) {
	needRoot(t)
	server := startAgent(t)
	cli := program(t, "replypath", "cli")
	results := make([]chan error, len(mended))
	slots := make(chan struct{}, atOnce)
	for i, name := range mended {
		results[i] = make(chan error, 1)
		go func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			results[i] <- mends(t.Context(), name, cli, server)
		}()
	}
	for i, name := range mended {
		t.Run(name, func(t *testing.T) {
			if l, _ := lab.Find(name); l.Missing() != "" {
				t.Skipf("needs %s", l.Missing())
			}
			if err := <-results[i]; err != nil {
				t.Error(err)
			}
		})
	}
}

// mends builds a lab, has its fault found and mended, and removes it.
func mends(ctx context.Context, name, cli, server string) (err error) {
	l, ok := lab.Find(name)
	if !ok {
		return fmt.Errorf("no lab %s", name)
	}
	n, err := lab.Up(ctx, l, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.Down()) }()
	f, err := suffer(ctx, n, cli, server)
	if err != nil {
		return err
	}
	commands := commandsOf(f.Fix)
	if len(commands) == 0 {
		return fmt.Errorf("no command mends: %q", f.Fix)
	}
	if err := shell(ctx, commands); err != nil {
		return err
	}
	time.Sleep(time.Second) // an address or a device takes a moment
	if err := n.Traffic(ctx); err != nil {
		return err
	}
	if got := n.Outcome(); got != lab.Connected {
		return fmt.Errorf("the client says %s after %q", got, f.Fix)
	}
	return shell(ctx, commandsOf(f.Verify))
}

// suffer has a lab's client meet the fault, until the agent tells of it: on a busy machine events get lost.
func suffer(ctx context.Context, n *lab.Network, cli, server string) (finding, error) {
	var all []finding
	for range 4 {
		if err := n.Traffic(ctx); err != nil {
			return finding{}, err
		}
		if !n.Lab().Outcome.Fits(n.Outcome()) {
			return finding{}, fmt.Errorf("the client says %s before, not %s", n.Outcome(), n.Lab().Outcome)
		}
		for range 8 {
			all = ask(ctx, cli, "explain", "-o", "json", "--server", server, "--since", "60s").findings
			for _, f := range all {
				if f.ID == n.Lab().Finding && f.Where.Netns == n.Namespaces()[n.Lab().Where] {
					return f, nil
				}
			}
			time.Sleep(500 * time.Millisecond)
		}
	}
	return finding{}, fmt.Errorf("no %s in %s", n.Lab().Finding, list(all))
}

// commandsOf are the lines that a shell would not take for comments.
func commandsOf(lines []string) []string {
	return slices.DeleteFunc(slices.Clone(lines), func(line string) bool { return strings.HasPrefix(line, "#") })
}

// shell runs commands as they were told.
func shell(ctx context.Context, commands []string) error {
	for _, command := range commands {
		if out, err := exec.CommandContext(ctx, "sh", "-c", command).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", command, err, out)
		}
	}
	return nil
}
