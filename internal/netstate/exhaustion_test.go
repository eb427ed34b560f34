package netstate

import (
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/replypath/replypath/pkg/trace"
)

// withoutFiles runs f while this process may open no file (EMFILE).
func withoutFiles(t *testing.T, f func()) {
	t.Helper()
	var limit unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
	none := unix.Rlimit{Cur: 0, Max: limit.Max}
	must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &none))
	defer func() { must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)) }()
	if fd, err := unix.Open("/proc/self", unix.O_PATH|unix.O_CLOEXEC, 0); !errors.Is(err, unix.EMFILE) {
		unix.Close(fd)
		t.Fatalf("open: %v, want EMFILE", err)
	}
	f()
}

// A scan that may open no file keeps the names, of which those that are gone are noticed.
func TestScanWithoutFiles(t *testing.T) {
	c := newCatalog(t)
	c.add("blue", "mnt")
	c.add("green", "uts")
	c.age(time.Hour)
	d := c.open()
	c.want(d, "mnt", "blue")
	c.want(d, "uts", "green")
	c.add("late", "ipc")
	c.remove("green")
	scanned := d.scanned
	withoutFiles(t, func() {
		c.pass(time.Second)
		c.want(d, "mnt", "blue")
		if d.scanned.Equal(scanned) {
			t.Error("there was no scan")
		}
		c.want(d, "uts", "")
		c.want(d, "ipc", "")
		if got, same := d.PlaceAt(c.inode("mnt"), c.now); got.Name != "blue" || !same {
			t.Errorf("PlaceAt = %+v, %v", got, same)
		}
	})
	c.pass(time.Second)
	c.want(d, "mnt", "blue")
	c.want(d, "ipc", "late") // it is scanned again though nothing changed since
}

func TestOpenWithoutFiles(t *testing.T) {
	s := newSpace(t)
	d, err := NewDirectory()
	must(t, err)
	pid := startSleeper(t)
	var stat unix.Stat_t
	must(t, unix.Stat(d.sources.processPath(pid), &stat))
	d.Place(s.inode)
	withoutFiles(t, func() {
		if _, err := d.openKnown(s.inode); !errors.Is(err, unix.EMFILE) {
			t.Errorf("open by name: %v, want EMFILE", err)
		}
		for name, ns := range map[string]trace.Netns{"named": s.inode, "nameless": trace.Netns(stat.Ino)} {
			handle, err := d.Open(ns)
			if !errors.Is(err, unix.EMFILE) || errors.Is(err, ErrNoNamespace) {
				handle.Close()
				t.Errorf("Open of a %s namespace: %v, want EMFILE", name, err)
			}
		}
	})
	handle, err := d.Open(s.inode)
	must(t, err)
	handle.Close()
}

// A search for processes that failed does not make those known forgotten.
func TestProcessesWithoutFiles(t *testing.T) {
	needRoot(t)
	d, err := NewDirectory()
	must(t, err)
	pid := startSleeper(t)
	var stat unix.Stat_t
	must(t, unix.Stat(d.sources.processPath(pid), &stat))
	ns := trace.Netns(stat.Ino)
	if got, _ := d.PlaceAt(ns, time.Now()); got.PID != pid {
		t.Fatalf("PlaceAt = %+v, want process %d", got, pid)
	}
	withoutFiles(t, func() {
		d.nextProcess.Store(0)
		d.findProcesses(time.Now())
		for d.processing.Load() {
			time.Sleep(time.Millisecond)
		}
	})
	if got := d.Place(ns); got.PID != pid {
		t.Errorf("Place = %+v, want process %d", got, pid)
	}
}
