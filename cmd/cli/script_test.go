package main

import (
	"errors"
	"flag"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

var update = flag.Bool("update", false, "write what the commands print into the scripts of testdata")

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"replypath": main})
}

// TestScripts runs the scripts in testdata against the true main.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		UpdateScripts:       *update,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("TZ", "UTC")
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"agent": agentCommand,
			"exits": exitsCommand,
		},
	})
}

// agentCommand is "agent FILE...": for each an agent that gives the answers in it
// listens, the first on agent.sock, the next on agent2.sock, and REPLYPATH_SERVER names them.
func agentCommand(ts *testscript.TestScript, _ bool, args []string) {
	var servers []string
	for i, file := range args {
		f, err := parseAnswers(ts.ReadFile(file))
		ts.Check(err)
		name := "agent.sock"
		if i > 0 {
			name = fmt.Sprintf("agent%d.sock", i+1)
		}
		path := filepath.Join(ts.Getenv("WORK"), name)
		l, err := net.Listen("unix", path)
		ts.Check(err)
		ts.Defer(f.serve(l))
		servers = append(servers, "unix://"+path)
	}
	ts.Setenv("REPLYPATH_SERVER", strings.Join(servers, ","))
}

// exitsCommand is "exits CODE PROGRAM ARG...": the program must end with that code.
func exitsCommand(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			ts.Check(err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("%s", fmt.Sprintf("exit code %d, want %d", got, want))
	}
}
