package stream

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	socketMode    = 0o600
	directoryMode = 0o700
	probeTimeout  = time.Second     // for an agent that may listen already
	lockTimeout   = 2 * time.Second // for another agent that is starting
)

// listenUnix listens on a socket that is its owner's alone from its first
// moment on, and makes the directory for it. A socket that an agent left when
// it was killed is replaced; one that is answered is not.
func listenUnix(e Endpoint) (net.Listener, error) {
	directory := filepath.Dir(e.Address)
	if err := makeDirectory(directory); err != nil {
		return nil, err
	}
	unlock, err := lockDirectory(directory)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := clearSocket(e); err != nil {
		return nil, err
	}
	// bind(2) gives the file the mode of the socket's own inode, less the
	// umask (net/unix/af_unix.c, unix_bind_bsd), so no moment is left in which
	// others may connect, and the umask of the process stays as it is.
	private := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var chmodErr error
		err := c.Control(func(fd uintptr) { chmodErr = unix.Fchmod(int(fd), socketMode) })
		return errors.Join(err, chmodErr)
	}}
	listener, err := private.Listen(context.Background(), "unix", e.Address)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", e, cause(err))
	}
	return listener, nil
}

// makeDirectory makes the socket's directory for its owner alone, and those above it for all.
func makeDirectory(directory string) error {
	if info, err := os.Stat(directory); err == nil && info.IsDir() {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(directory), 0o755); err != nil {
		return fmt.Errorf("make directory %s: %w", filepath.Dir(directory), cause(err))
	}
	if err := os.Mkdir(directory, directoryMode); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make directory %s: %w", directory, cause(err))
	}
	return nil
}

// lockDirectory keeps two agents that start together from taking each other's
// new socket for a left one. The directory itself is locked, so that no file
// stays behind. Whoever may read the directory can hold the lock as well, and
// must not be able to keep the agent from starting: after lockTimeout it goes on without.
func lockDirectory(directory string) (unlock func(), err error) {
	f, err := os.Open(directory)
	if err != nil {
		return nil, fmt.Errorf("open directory %s: %w", directory, cause(err))
	}
	for end := time.Now().Add(lockTimeout); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != unix.EWOULDBLOCK && err != unix.EINTR {
			break // held, or the file system has no locks
		}
	}
	return func() { _ = f.Close() }, nil
}

// clearSocket removes a socket that nobody answers.
func clearSocket(e Endpoint) error {
	info, err := os.Lstat(e.Address)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("look for %s: %w", e.Address, cause(err))
	case info.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("listen on %s: the file exists and is not a socket", e)
	}
	connection, err := net.DialTimeout("unix", e.Address, probeTimeout)
	switch {
	case err == nil:
		_ = connection.Close()
		return fmt.Errorf("another agent listens on %s", e)
	case errors.Is(err, unix.EAGAIN), errors.Is(err, os.ErrDeadlineExceeded): // its queue is full
		return fmt.Errorf("another agent listens on %s, and is busy", e)
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case !errors.Is(err, unix.ECONNREFUSED):
		return fmt.Errorf("ask who listens on %s: %w", e, cause(err))
	}
	if err := os.Remove(e.Address); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove left socket %s: %w", e.Address, cause(err))
	}
	return nil
}

// cause strips the operation and the path that our own message names already.
func cause(err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return err
}
