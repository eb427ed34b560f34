package netstate

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/replypath/replypath/pkg/trace"
)

// reuse deletes the namespace and starts processes in nameless ones until the
// kernel gives one of them its inode. It returns that process, 0 when another got it.
func (s *space) reuse(t *testing.T) int {
	t.Helper()
	s.Handle.Close()
	must(t, s.fd.Close())
	must(t, netns.DeleteNamed(s.name))
	for range 20 { // a namespace goes in the background; lower inodes that are free go first
		pid := startSleeper(t)
		var stat unix.Stat_t
		must(t, unix.Stat(fmt.Sprintf("/proc/%d/ns/net", pid), &stat))
		if trace.Netns(stat.Ino) == s.inode {
			return pid
		}
		time.Sleep(20 * time.Millisecond)
	}
	return 0
}

// newReuse makes a namespace with a name that the directory learns, and
// replaces it by a nameless one with the same inode.
func newReuse(t *testing.T, d *Directory) (old *space, lived time.Time, pid int) {
	t.Helper()
	for range 10 {
		s := newSpace(t)
		waitFor(t, "name", func() bool { return d.Place(s.inode).Name == s.name })
		lived := time.Now()
		time.Sleep(50 * time.Millisecond) // the clock of files is coarse
		if pid := s.reuse(t); pid != 0 {
			return s, lived, pid
		}
	}
	t.Fatal("the kernel did not use an inode again")
	return nil, time.Time{}, 0
}

// A nameless namespace that has the inode of a deleted one must not get its name.
func TestPlaceAtAfterReuse(t *testing.T) {
	needRoot(t)
	d, err := NewDirectory()
	must(t, err)
	old, lived, pid := newReuse(t, d)
	want := trace.Place{Netns: old.inode, PID: pid}
	if got, same := d.PlaceAt(old.inode, time.Now()); got != want || !same {
		t.Errorf("PlaceAt now = %+v, %v; want the process at once: %+v", got, same, want)
	}
	if got := d.Place(old.inode); got != want {
		t.Errorf("Place = %+v, want %+v", got, want)
	}
	if got, same := d.PlaceAt(old.inode, lived); got != old.place() || same {
		t.Errorf("PlaceAt before = %+v, %v; want %+v, and that it is gone", got, same, old.place())
	}
	if got := d.PlaceThen(old.inode, lived); got != old.place() {
		t.Errorf("PlaceThen before = %+v, want %+v", got, old.place())
	}
	if got := d.PlaceThen(old.inode, time.Now()); got != want {
		t.Errorf("PlaceThen now = %+v, want %+v", got, want)
	}
	handle, err := d.Open(old.inode)
	must(t, err)
	handle.Close()
}

// Place and PlaceThen notice it by themselves.
func TestPlaceAfterReuse(t *testing.T) {
	needRoot(t)
	d, err := NewDirectory()
	must(t, err)
	old, lived, pid := newReuse(t, d)
	if got := d.Place(old.inode); got.Name != "" {
		t.Errorf("Place = %+v, the name of a namespace that is gone", got)
	}
	if got := d.PlaceThen(old.inode, lived); got != old.place() {
		t.Errorf("PlaceThen before = %+v, want %+v", got, old.place())
	}
	waitFor(t, "process", func() bool { return d.Place(old.inode).PID == pid })
}

// A process that is gone is not told, though it is too early to look for another.
func TestPlaceAtVerifiesProcess(t *testing.T) {
	needRoot(t)
	d, err := NewDirectory()
	must(t, err)
	pid := startSleeper(t)
	var stat unix.Stat_t
	must(t, unix.Stat(fmt.Sprintf("/proc/%d/ns/net", pid), &stat))
	ns := trace.Netns(stat.Ino)
	if got, same := d.PlaceAt(ns, time.Now()); got.PID != pid || !same {
		t.Fatalf("PlaceAt = %+v, %v; want process %d at once", got, same, pid)
	}
	must(t, unix.Kill(pid, unix.SIGKILL))
	waitFor(t, "end of the process", func() bool {
		return unix.Stat(fmt.Sprintf("/proc/%d/ns/net", pid), &stat) != nil
	})
	if got, _ := d.PlaceAt(ns, time.Now()); got.PID != 0 {
		t.Errorf("PlaceAt = %+v, a process that is gone", got)
	}
}

// A second name for a namespace, or one name less, is no other namespace.
func TestPlaceAtOfAlias(t *testing.T) {
	s := newSpace(t)
	d, err := NewDirectory()
	must(t, err)
	lived := time.Now()
	want := func(name string) {
		t.Helper()
		waitFor(t, "name "+name, func() bool { return d.Place(s.inode).Name == name })
		if got, same := d.PlaceAt(s.inode, lived); got.Name != name || !same {
			t.Errorf("PlaceAt = %+v, %v; want %q, and that it is there", got, same, name)
		}
	}
	want(s.name)
	alias := "rpns-0" + s.name[len("rpns-"):] // before it in the alphabet, or after
	path := filepath.Join("/run/netns", alias)
	must(t, os.WriteFile(path, nil, 0o400))
	t.Cleanup(func() { unix.Unmount(path, unix.MNT_DETACH); os.Remove(path) })
	must(t, unix.Mount(filepath.Join("/run/netns", s.name), path, "", unix.MS_BIND, ""))
	want(min(alias, s.name))
	must(t, netns.DeleteNamed(min(alias, s.name)))
	want(max(alias, s.name))
}
