package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// nameForm is the form of a lab's namespaces; the first group is the network's id.
var nameForm = regexp.MustCompile(`^(rplab-[a-z0-9-]+-[0-9a-f]{4})-[a-z0-9]+$`)

// parseName returns the id of the network that a namespace belongs to.
func parseName(name string) (id string, ok bool) {
	m := nameForm.FindStringSubmatch(name)
	if m == nil {
		return "", false
	}
	return m[1], true
}

// DownAll removes the networks that nobody holds any more: those that were
// detached, and those whose process died. A network that a living process is
// using is left alone. It returns the names of the namespaces that it removed, sorted.
func DownAll(ctx context.Context) ([]string, error) {
	if _, err := os.Stat(runDir); errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	dir, err := lockRunDir()
	if err != nil {
		return nil, fmt.Errorf("remove labs: %w", err)
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("remove labs: list %s: %w", runDir, err)
	}
	networks := map[string][]string{}
	for _, name := range names {
		if id, ok := parseName(name); ok {
			networks[id] = append(networks[id], name)
		}
	}
	var removed []string
	var failed error
	for id, names := range networks {
		if err := ctx.Err(); err != nil {
			failed = errors.Join(failed, err)
			break
		}
		if slices.ContainsFunc(names, held) {
			continue
		}
		if err := removeNetwork(id, names); err != nil {
			failed = errors.Join(failed, err)
			continue
		}
		removed = append(removed, names...)
	}
	failed = errors.Join(failed, removeStray(networks))
	slices.Sort(removed)
	return removed, failed
}

// held reports whether a living process holds the namespace's lock.
func held(name string) bool {
	file, err := os.Open(filepath.Join(runDir, name))
	if err != nil {
		return false
	}
	defer file.Close()
	return errors.Is(unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB), unix.EWOULDBLOCK)
}

// removeNetwork ends the network's detached server and removes its namespaces.
func removeNetwork(id string, names []string) error {
	failed := errors.Join(endServers(id, names), removeState(id))
	for _, name := range names {
		failed = errors.Join(failed, removeNamespace(name))
	}
	return failed
}

// endServers ends the processes that live in one of the namespaces and carry
// the network's mark. Others, such as somebody's shell there, are not touched.
func endServers(id string, names []string) error {
	inodes := map[uint64]bool{}
	for _, name := range names {
		var s unix.Stat_t
		if unix.Stat(filepath.Join(runDir, name), &s) == nil {
			inodes[s.Ino] = true
		}
	}
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return fmt.Errorf("list processes: %w", err)
	}
	var failed error
	for _, process := range processes {
		var s unix.Stat_t
		if unix.Stat(process+"/ns/net", &s) != nil || !inodes[s.Ino] {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(process))
		if err != nil || pid == os.Getpid() {
			continue
		}
		failed = errors.Join(failed, endServer(pid, id))
	}
	return failed
}

// endServer kills a process if it carries the network's mark, and waits for its end.
func endServer(pid int, id string) error {
	handle, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open process %d: %w", pid, err)
	}
	defer unix.Close(handle)
	// Read after the handle was opened, so that mark and handle belong to one process.
	environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil || !slices.ContainsFunc(bytes.Split(environ, []byte{0}), func(v []byte) bool {
		return string(v) == envNetwork+"="+id
	}) {
		return nil
	}
	if err := unix.PidfdSendSignal(handle, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("end process %d: %w", pid, err)
	}
	return awaitEnd(handle, pid)
}

// awaitEnd waits up to 2 s for a process to end.
func awaitEnd(handle, pid int) error {
	for deadline := time.Now().Add(2 * time.Second); ; {
		left := time.Until(deadline)
		if left <= 0 {
			return fmt.Errorf("end process %d: it is still there", pid)
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(handle), Events: unix.POLLIN}}, int(left.Milliseconds())+1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("await end of process %d: %w", pid, err)
		}
		if n > 0 {
			return nil
		}
	}
}
