package main

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// The exit codes; scripts rely on them.
const (
	exitOK      = 0 // no fault found
	exitFault   = 1 // there are findings
	exitUsage   = 2 // a flag, filter, lab or command that cannot be
	exitNoAgent = 3 // no agent, or tracing is impossible
)

// exitError is an error that names the exit code.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

// errFault ends a command that has shown findings; it is not told.
var errFault = &exitError{exitFault, errors.New("findings")}

func usagef(format string, args ...any) error {
	return &exitError{exitUsage, fmt.Errorf(format, args...)}
}

func noAgentf(format string, args ...any) error {
	return &exitError{exitNoAgent, fmt.Errorf(format, args...)}
}

// run runs one command and returns the exit code.
func run(ctx context.Context, w world) int {
	root := newRoot(&w)
	root.SetArgs(append([]string{}, w.args...)) // never nil: cobra would take os.Args
	root.SetIn(w.stdin)
	root.SetOut(w.stdout)
	root.SetErr(w.stderr)
	cmd, err := root.ExecuteContextC(ctx)
	return w.report(cmd, err)
}

// report says on stderr, in one line, why a command failed.
func (w *world) report(cmd *cobra.Command, err error) int {
	var exit *exitError
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, errFault):
		return exitFault
	case errors.As(err, &exit) && exit.code != exitUsage:
		w.note("%v", err)
		return exit.code
	case errors.As(err, &exit):
		w.note("%v (see '%s --help')", err, cmd.CommandPath())
		return exitUsage
	}
	// What no command of ours returned is cobra's: flags and arguments.
	w.note("%v (see '%s --help')", err, cmd.CommandPath())
	return exitUsage
}

// command makes RunE of a command's body: whatever it returns without a code is
// trouble with tracing. A reader that has gone (head) is no trouble.
func command(body func(cmd *cobra.Command, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		err := body(cmd, args)
		var exit *exitError
		switch {
		case err == nil || errors.As(err, &exit):
			return err
		case errors.Is(err, syscall.EPIPE):
			return nil
		}
		return &exitError{exitNoAgent, err}
	}
}

// callError turns the error of a call to an agent into words and a code.
func callError(server string, err error) error {
	s, ok := status.FromError(err)
	if !ok {
		return err
	}
	switch s.Code() {
	case codes.InvalidArgument:
		return usagef("%s", s.Message())
	case codes.Unavailable:
		return noAgentf("no answer from the agent at %s: %s", server, s.Message())
	case codes.DeadlineExceeded:
		return noAgentf("no answer from the agent at %s in time", server)
	case codes.Canceled:
		return noAgentf("interrupted")
	}
	return noAgentf("agent at %s: %s", server, s.Message())
}
