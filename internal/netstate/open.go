package netstate

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/replypath/replypath/pkg/trace"
)

// ErrNoNamespace says that a network namespace cannot be reached: it is gone,
// or has neither a name nor a process.
var ErrNoNamespace = errors.New("no such network namespace")

var errNotNetwork = errors.New("not a network namespace")

// Open opens a namespace by its name, or else by a process in it, and verifies
// that it is the one: names, inodes and process numbers are all used again. The caller
// closes the handle. The error is ErrNoNamespace when there is no way to it, and
// another one when a way could not be tried (EMFILE, EACCES).
func (d *Directory) Open(ns trace.Netns) (netns.NsHandle, error) {
	if ns == 0 {
		return netns.None(), ErrNoNamespace
	}
	handle, err := d.openKnown(ns)
	if errors.Is(err, ErrNoNamespace) {
		d.scanning.Lock()
		d.scan(d.now())
		d.scanning.Unlock()
		handle, err = d.openKnown(ns)
	}
	if errors.Is(err, ErrNoNamespace) {
		handle, err = d.openProcess(ns)
	}
	if err != nil {
		return netns.None(), fmt.Errorf("open network namespace %d: %w", ns, err)
	}
	return handle, nil
}

// openKnown tries the ways that are known. Of their errors it prefers one that
// is not ErrNoNamespace.
func (d *Directory) openKnown(ns trace.Netns) (netns.NsHandle, error) {
	var ways []string
	d.mu.RLock()
	if path := d.found.paths[ns]; path != "" {
		ways = append(ways, path)
	}
	if path := d.located[ns]; path != "" {
		ways = append(ways, path)
	}
	if e := d.entries[ns]; e != nil && e.place.PID != 0 && !e.place.Host {
		ways = append(ways, d.sources.processPath(e.place.PID))
	}
	d.mu.RUnlock()
	if ns == d.host.Netns {
		ways = append(ways, d.sources.hostPath())
	}
	failure := ErrNoNamespace
	for _, path := range ways {
		handle, err := openVerified(path, ns)
		if err == nil {
			return handle, nil
		}
		if !errors.Is(err, ErrNoNamespace) {
			failure = err
		}
	}
	return netns.None(), failure
}

// openProcess looks for a process in the namespace.
func (d *Directory) openProcess(ns trace.Netns) (netns.NsHandle, error) {
	pid, err := d.sources.process(ns)
	if err != nil {
		return netns.None(), err
	}
	if pid == 0 {
		return netns.None(), ErrNoNamespace
	}
	return openVerified(d.sources.processPath(pid), ns)
}

// openVerified opens a path if it leads to the namespace. The error is
// ErrNoNamespace when it does not.
func openVerified(path string, ns trace.Netns) (netns.NsHandle, error) {
	handle, inode, err := openNamespace(path)
	if err != nil {
		if leadsNowhere(err) {
			err = ErrNoNamespace
		}
		return netns.None(), err
	}
	if inode != ns {
		handle.Close()
		return netns.None(), ErrNoNamespace
	}
	return handle, nil
}

// leadsNowhere tells the errors of a path that is gone, or is something else
// by now, from those that say nothing about it.
func leadsNowhere(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, errNotNetwork) ||
		errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP)
}

// openNamespace opens a network namespace file and tells its inode.
func openNamespace(path string) (netns.NsHandle, trace.Netns, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return netns.None(), 0, fmt.Errorf("open %s: %w", path, err)
	}
	inode, err := networkInode(fd)
	if err != nil {
		unix.Close(fd)
		return netns.None(), 0, fmt.Errorf("open %s: %w", path, err)
	}
	return netns.NsHandle(fd), inode, nil
}

// networkInode returns the inode number of an open network namespace file.
func networkInode(fd int) (trace.Netns, error) {
	kind, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE)
	if err != nil || kind != unix.CLONE_NEWNET {
		return 0, errNotNetwork
	}
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		return 0, err
	}
	return trace.Netns(stat.Ino), nil
}
