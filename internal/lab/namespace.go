package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// runDir is where iproute2 keeps named network namespaces (ip-netns(8)).
const runDir = "/run/netns"

// enter runs do on a thread that is in the namespace. A thread that cannot be
// brought back is thrown away with its goroutine.
func enter(ns netns.NsHandle, do func() error) error {
	return onThread(func() error {
		if err := netns.Set(ns); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
		return do()
	})
}

// onThread runs do on a thread of its own, which may change its network
// namespace, and puts the thread back afterwards.
func onThread(do func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		origin, err := netns.GetFromPath("/proc/thread-self/ns/net")
		if err != nil {
			runtime.UnlockOSThread()
			result <- fmt.Errorf("open own network namespace: %w", err)
			return
		}
		defer origin.Close()
		err = do()
		if back := netns.Set(origin); back != nil {
			result <- errors.Join(err, fmt.Errorf("leave network namespace: %w", back))
			return // still locked: the runtime ends the thread
		}
		runtime.UnlockOSThread()
		result <- err
	}()
	return <-result
}

// createNamespace makes a named namespace and returns a handle to it. The
// handle holds a lock: as long as it is open, DownAll leaves the namespace alone.
func createNamespace(name string) (netns.NsHandle, error) {
	dir, err := lockRunDir()
	if err != nil {
		return netns.None(), err
	}
	defer dir.Close()
	if err := shareRunDir(); err != nil {
		return netns.None(), err
	}
	path := filepath.Join(runDir, name)
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if err != nil {
		return netns.None(), fmt.Errorf("create network namespace: %w", err)
	}
	file.Close()

	ns := netns.None()
	err = onThread(func() error {
		var err error
		ns, err = newNamespaceAt(path)
		return err
	})
	if err != nil {
		os.Remove(path)
		return netns.None(), fmt.Errorf("create network namespace %s: %w", name, err)
	}
	return ns, nil
}

// newNamespaceAt moves the calling thread into a new namespace, locks it and mounts it at path.
func newNamespaceAt(path string) (netns.NsHandle, error) {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return netns.None(), fmt.Errorf("unshare: %w", err)
	}
	const self = "/proc/thread-self/ns/net"
	ns, err := netns.GetFromPath(self)
	if err != nil {
		return netns.None(), fmt.Errorf("open %s: %w", self, err)
	}
	if err := unix.Flock(int(ns), unix.LOCK_SH|unix.LOCK_NB); err != nil {
		ns.Close()
		return netns.None(), fmt.Errorf("lock %s: %w", self, err)
	}
	if err := unix.Mount(self, path, "none", unix.MS_BIND, ""); err != nil {
		ns.Close()
		return netns.None(), fmt.Errorf("mount %s: %w", path, err)
	}
	return ns, nil
}

// lockRunDir makes the directory if it is missing and takes the lock that
// iproute2 takes too, so that nobody removes what is half made.
func lockRunDir() (*os.File, error) {
	if err := os.MkdirAll(runDir, 0o755); err != nil {
		return nil, fmt.Errorf("create %s: %w", runDir, err)
	}
	dir, err := os.Open(runDir)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", runDir, err)
	}
	for {
		err = unix.Flock(int(dir.Fd()), unix.LOCK_EX)
		if err == nil {
			return dir, nil
		}
		if !errors.Is(err, unix.EINTR) {
			dir.Close()
			return nil, fmt.Errorf("lock %s: %w", runDir, err)
		}
	}
}

// shareRunDir makes the directory a shared mount, as iproute2 does (netns_add
// in ip/ipnetns.c): a namespace removed here then goes from containers too.
func shareRunDir() error {
	err := unix.Mount("", runDir, "none", unix.MS_SHARED|unix.MS_REC, "")
	if !errors.Is(err, unix.EINVAL) {
		return wrap("share "+runDir, err)
	}
	// EINVAL: it is not a mount point yet.
	if err := unix.Mount(runDir, runDir, "none", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("mount %s: %w", runDir, err)
	}
	return wrap("share "+runDir, unix.Mount("", runDir, "none", unix.MS_SHARED|unix.MS_REC, ""))
}

// removeNamespace takes the name away; the namespace goes with its last user.
// A name that is gone already is no error.
func removeNamespace(name string) error {
	path := filepath.Join(runDir, name)
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	return nil
}

// wrap adds what was done to an error, and leaves nil alone.
func wrap(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}
