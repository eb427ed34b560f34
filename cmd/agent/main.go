// Command replypath-agent watches one node's kernel for replies that do not
// come back, and answers the replypath CLI.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/replypath/replypath/internal/agent"
)

// Exit codes, as those of the CLI.
const (
	exitUsage      = 2
	exitImpossible = 3
)

// What is kept is bounded, garbage is not: these keep it small beside other
// work on the node. GOGC and GOMEMLIMIT in the environment win.
const (
	gcPercent   = 50
	memoryLimit = 128 << 20
)

func main() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryLimit)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.LookupEnv, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run is the whole program but for the process around it.
func run(ctx context.Context, args []string, lookupEnv func(string) (string, bool), stdout, stderr io.Writer) int {
	var o options
	cmd := newCommand(&o, lookupEnv, func() error {
		log, err := newLogger(stderr, o.logLevel, o.logFormat)
		if err != nil {
			return err
		}
		o.agent.Log = log
		return agent.Run(ctx, o.agent, func() { log.Info("ready") })
	})
	cmd.SetArgs(args)
	cmd.SetOut(stdout)
	cmd.SetErr(stderr)
	switch err := cmd.ExecuteContext(ctx); {
	case err == nil:
		return 0
	case o.started:
		fmt.Fprintln(stderr, "replypath-agent:", err)
		if errors.Is(err, agent.ErrUsage) {
			return exitUsage
		}
		return exitImpossible
	default:
		fmt.Fprintf(stderr, "replypath-agent: %v (see 'replypath-agent --help')\n", err)
		return exitUsage
	}
}

// newLogger writes structured logs: text for people, JSON for collectors.
func newLogger(w io.Writer, level, format string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("%w: --log-level: want debug, info, warn or error, got %q", agent.ErrUsage, level)
	}
	opts := &slog.HandlerOptions{Level: l}
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(w, opts)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, opts)), nil
	}
	return nil, fmt.Errorf("%w: --log-format: want text or json, got %q", agent.ErrUsage, format)
}
