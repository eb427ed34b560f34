// Command replypath tells where a reply was lost and why. It asks a running
// replypath-agent, or traces in its own process where none runs.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	// A closed pipe ends the command by an error, not by a signal: a lab or a
	// trace must be taken down. A handler, unlike an ignored signal, is not
	// inherited by the commands that explain runs.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	os.Exit(run(context.Background(), newWorld()))
}
