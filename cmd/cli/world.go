package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/replypath/replypath/internal/render"
)

// world is everything outside this program that the commands touch, so that
// tests call the true entry point.
type world struct {
	args           []string // without the program's name
	stdin          io.Reader
	stdout, stderr io.Writer
	getenv         func(string) string
	euid           func() int
	// terminal returns the width in columns of a terminal; false for anything else.
	terminal func(any) (int, bool)
	dial     func(ctx context.Context, network, address string) (net.Conn, error)
	// interruptible returns a context that ends on SIGINT, SIGTERM and SIGHUP.
	interruptible func(context.Context) (context.Context, context.CancelFunc)
	// trace runs an agent in this process; see runAgent.
	trace func(ctx context.Context, a embedding) error
	zone  *time.Location
	// now is what ages count from; nil: ages are not told.
	now func() time.Time
}

func newWorld() world {
	return world{
		args:   os.Args[1:],
		stdin:  os.Stdin,
		stdout: os.Stdout,
		stderr: os.Stderr,
		getenv: os.Getenv,
		euid:   os.Geteuid,

		terminal: terminal,
		dial:     new(net.Dialer).DialContext,
		interruptible: func(ctx context.Context) (context.Context, context.CancelFunc) {
			return signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
		},
		trace: runAgent,
		zone:  time.Local,
		now:   time.Now,
	}
}

func terminal(v any) (int, bool) {
	f, ok := v.(*os.File)
	if !ok {
		return 0, false
	}
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0, false
	}
	return int(size.Col), true
}

// text returns how to write for people on stdout: colours only on a terminal
// and when the user does not refuse them (no-color.org).
func (w *world) text() render.Text {
	columns, tty := w.terminal(w.stdout)
	var now time.Time
	if w.now != nil {
		now = w.now()
	}
	return render.Text{
		Now:   now,
		Width: columns,
		Color: tty && w.getenv("NO_COLOR") == "" && w.getenv("TERM") != "dumb",
		Zone:  w.zone,
	}
}

// note tells the user something on stderr, one line.
func (w *world) note(format string, args ...any) {
	fmt.Fprintln(w.stderr, "replypath: "+render.Escape(fmt.Sprintf(format, args...)))
}
