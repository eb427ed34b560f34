package netstate

import (
	"io"
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
	since        map[trace.Netns]time.Time // when a namespace got its file in nsfs; it is not older than that
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
func (s sources) scan() found {
	f := found{
		names: make(map[trace.Netns]string), paths: make(map[trace.Netns]string), since: make(map[trace.Netns]time.Time),
	}
	device := s.device()
	for _, dir := range append([]string{s.names}, s.paths...) {
		for _, name := range listNames(dir) {
			path := filepath.Join(dir, name)
			inode, since, ok := namespaceFile(path, device)
			if !ok {
				f.pending = f.pending || dir == s.names
				continue
			}
			if _, ok := f.paths[inode]; !ok {
				f.paths[inode], f.since[inode] = path, since
			}
			if _, ok := f.names[inode]; !ok && dir == s.names {
				f.names[inode] = name
			}
		}
	}
	return f
}

// listNames reads a directory in alphabetical order; one that cannot be read is empty.
func listNames(dir string) []string {
	file, err := os.Open(dir)
	if err != nil {
		return nil
	}
	defer file.Close()
	names, err := file.Readdirnames(maxNames)
	if err != nil && err != io.EOF {
		return nil
	}
	slices.Sort(names)
	return names
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
	inode, _, ok := namespaceFile(path, device)
	return inode, ok
}

// namespaceFile also tells since when the file has been there (fs/nsfs.c makes
// it when a namespace is first opened, or mounted).
func namespaceFile(path string, device uint64) (trace.Netns, time.Time, bool) {
	var stat unix.Stat_t
	if err := unix.Stat(path, &stat); err != nil || stat.Dev != device {
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
func (s sources) processes() map[trace.Netns]int {
	found := make(map[trace.Netns]int)
	s.eachProcess(func(pid int, ns trace.Netns) bool {
		if first, ok := found[ns]; !ok || pid < first {
			found[ns] = pid
		}
		return true
	})
	return found
}

// process finds a process in the namespace, 0 when there is none.
func (s sources) process(ns trace.Netns) int {
	found := 0
	s.eachProcess(func(pid int, inode trace.Netns) bool {
		if inode == ns {
			found = pid
		}
		return found == 0
	})
	return found
}

// eachProcess calls each for the processes and their network namespaces, until it returns false.
func (s sources) eachProcess(each func(pid int, ns trace.Netns) bool) {
	file, err := os.Open(s.proc)
	if err != nil {
		return
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
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// parseProcess reads a name in /proc that is a process number.
func parseProcess(name string) (int, bool) {
	if name == "" || name[0] < '1' || name[0] > '9' {
		return 0, false
	}
	pid, err := strconv.ParseInt(name, 10, 32)
	return int(pid), err == nil
}
