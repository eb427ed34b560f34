package netstate

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/replypath/replypath/pkg/trace"
)

// Bounds of a scan.
const (
	maxNames     = 65_536
	maxProcesses = 1 << 22 // the kernel's own limit (PID_MAX_LIMIT)
)

// sources are the places that namespaces are found in.
type sources struct {
	names string   // ip-netns(8): files here are names
	paths []string // files here are ways in, but no names that people use
	proc  string
}

func hostSources() sources {
	return sources{names: "/run/netns", paths: []string{"/var/run/docker/netns"}, proc: "/proc"}
}

// found is what a scan of the names gave.
type found struct {
	names, paths map[trace.Netns]string
	since        map[trace.Netns]time.Time // when a namespace got its file in nsfs; it is not older than that; zero: not known
	listed       map[string][]string       // the files in each directory
	pending      bool                      // there is a file that is no namespace; it may become one
}

// changed is when the set of names last changed; zero when there is no directory.
func (s sources) changed() time.Time {
	info, err := os.Stat(s.names)
	if err != nil {
		return time.Time{}
	}
	return info.ModTime()
}

// scan reads the names. A namespace with several has the first in the alphabet.
// A directory that cannot be listed has the files that it had last: to look at
// them takes no file descriptor. The error says that there may be others.
func (s sources) scan(last found) (found, error) {
	device := s.device()
	if device == 0 {
		return last, errors.New("stat own network namespace")
	}
	f := found{
		names: make(map[trace.Netns]string), paths: make(map[trace.Netns]string),
		since: make(map[trace.Netns]time.Time), listed: make(map[string][]string),
	}
	var failure error
	for _, dir := range append([]string{s.names}, s.paths...) {
		names, err := listNames(dir)
		if err != nil {
			names = last.listed[dir]
			if failure == nil || !errors.Is(err, fs.ErrPermission) {
				failure = err
			}
		}
		f.listed[dir] = names
		f.look(dir, names, device, dir == s.names)
	}
	return f, failure
}

// look adds the namespaces that a directory's files lead to.
func (f *found) look(dir string, names []string, device uint64, named bool) {
	for _, name := range names {
		path := filepath.Join(dir, name)
		inode, since, ok := namespaceFile(path, device)
		if !ok {
			f.pending = f.pending || named
			continue
		}
		if _, ok := f.paths[inode]; !ok {
			f.paths[inode], f.since[inode] = path, since
		}
		if _, ok := f.names[inode]; !ok && named {
			f.names[inode] = name
		}
	}
}

// listNames reads a directory in alphabetical order; one that does not exist is empty.
func listNames(dir string) ([]string, error) {
	file, err := os.Open(dir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list names: %w", err)
	}
	defer file.Close()
	names, err := file.Readdirnames(maxNames)
	if err != nil && err != io.EOF && !errors.Is(err, unix.ENOTDIR) {
		return nil, fmt.Errorf("list names: %w", err)
	}
	slices.Sort(names)
	return names, nil
}

// device is the number of the file system that namespaces are files of (nsfs); 0 when it is not known.
func (s sources) device() uint64 {
	var stat unix.Stat_t
	if err := unix.Stat(filepath.Join(s.proc, "thread-self/ns/net"), &stat); err != nil {
		return 0
	}
	return stat.Dev
}

// namespaceInode returns the inode of a namespace's file. It follows the bind
// mounts of ip-netns(8), but a plain file is no namespace.
func namespaceInode(path string, device uint64) (trace.Netns, bool) {
	var stat unix.Stat_t
	if err := unix.Stat(path, &stat); err != nil || stat.Dev != device {
		return 0, false
	}
	return trace.Netns(stat.Ino), true
}

// namespaceFile also tells since when the file has been there (fs/nsfs.c makes
// it when a namespace is first opened, or mounted). A link to a process's
// namespace holds no file: each look at it may make a new one, so the time is zero.
func namespaceFile(path string, device uint64) (trace.Netns, time.Time, bool) {
	var stat unix.Stat_t
	if err := unix.Lstat(path, &stat); err != nil {
		return 0, time.Time{}, false
	}
	if stat.Mode&unix.S_IFMT == unix.S_IFLNK {
		inode, ok := namespaceInode(path, device)
		return inode, time.Time{}, ok
	}
	if stat.Dev != device {
		return 0, time.Time{}, false
	}
	return trace.Netns(stat.Ino), time.Unix(stat.Mtim.Unix()), true
}

// hostPath is the namespace of the node: that of the first process, else this
// one's own (a container that does not see the node's processes).
func (s sources) hostPath() string {
	first := s.processPath(1)
	if _, ok := namespaceInode(first, s.device()); ok {
		return first
	}
	return filepath.Join(s.proc, "thread-self/ns/net")
}

// host returns the node's namespace and a process in it.
func (s sources) host() (trace.Place, error) {
	path, pid := s.hostPath(), 1
	if path != s.processPath(1) {
		pid = os.Getpid()
	}
	var stat unix.Stat_t
	if err := unix.Stat(path, &stat); err != nil {
		return trace.Place{}, err
	}
	return trace.Place{Netns: trace.Netns(stat.Ino), Host: true, PID: pid}, nil
}

func (s sources) processPath(pid int) string {
	return filepath.Join(s.proc, strconv.Itoa(pid), "ns/net")
}

// processes finds for each network namespace the process with the lowest
// number: in a pod that is mostly its first. Own threads visit other
// namespaces, so this process is left out.
func (s sources) processes() (map[trace.Netns]int, error) {
	found := make(map[trace.Netns]int)
	err := s.eachProcess(func(pid int, ns trace.Netns) bool {
		if first, ok := found[ns]; !ok || pid < first {
			found[ns] = pid
		}
		return true
	})
	return found, err
}

// process finds a process in the namespace, 0 when there is none.
func (s sources) process(ns trace.Netns) (int, error) {
	found := 0
	err := s.eachProcess(func(pid int, inode trace.Netns) bool {
		if inode == ns {
			found = pid
		}
		return found == 0
	})
	return found, err
}

// eachProcess calls each for the processes and their network namespaces, until it
// returns false. The error says that there may be others.
func (s sources) eachProcess(each func(pid int, ns trace.Netns) bool) error {
	file, err := os.Open(s.proc)
	if err != nil {
		return fmt.Errorf("list processes: %w", err)
	}
	defer file.Close()
	device, own := s.device(), os.Getpid()
	for seen := 0; seen < maxProcesses; {
		names, err := file.Readdirnames(256)
		for _, name := range names {
			seen++
			pid, ok := parseProcess(name)
			if !ok || pid == own {
				continue
			}
			if ns, ok := namespaceInode(s.processPath(pid), device); ok && !each(pid, ns) {
				return nil
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("list processes: %w", err)
		}
	}
	return nil
}

// parseProcess reads a name in /proc that is a process number.
func parseProcess(name string) (int, bool) {
	if name == "" || name[0] < '1' || name[0] > '9' {
		return 0, false
	}
	pid, err := strconv.ParseInt(name, 10, 32)
	return int(pid), err == nil
}
