package netstate

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/replypath/replypath/pkg/trace"
)

// catalog is a directory of names for tests without privileges: links to this
// process's own namespaces of several kinds stand for network namespaces.
type catalog struct {
	t   *testing.T
	dir string
	now time.Time
}

func newCatalog(t *testing.T) *catalog {
	return &catalog{t: t, dir: t.TempDir(), now: time.Now()}
}

// inode is that of one of this process's namespaces: "mnt", "uts", "ipc", "user", "net".
func (c *catalog) inode(kind string) trace.Netns {
	c.t.Helper()
	var stat unix.Stat_t
	must(c.t, unix.Stat("/proc/self/ns/"+kind, &stat))
	return trace.Netns(stat.Ino)
}

func (c *catalog) add(name, kind string) {
	c.t.Helper()
	must(c.t, os.Symlink("/proc/self/ns/"+kind, filepath.Join(c.dir, name)))
}

func (c *catalog) remove(name string) {
	c.t.Helper()
	must(c.t, os.Remove(filepath.Join(c.dir, name)))
}

// age makes the directory's last change older, as if time had passed since.
func (c *catalog) age(d time.Duration) {
	c.t.Helper()
	at := c.now.Add(-d)
	must(c.t, os.Chtimes(c.dir, at, at))
}

func (c *catalog) open() *Directory {
	c.t.Helper()
	d, err := newDirectory(sources{names: c.dir, proc: "/proc"}, func() time.Time { return c.now })
	must(c.t, err)
	return d
}

func (c *catalog) pass(d time.Duration) { c.now = c.now.Add(d) }

func (c *catalog) want(d *Directory, kind, name string) {
	c.t.Helper()
	if got := d.Place(c.inode(kind)); got.Name != name || got.Netns != c.inode(kind) {
		c.t.Errorf("Place(%s) = %+v, want name %q", kind, got, name)
	}
}

func TestPlaceNames(t *testing.T) {
	c := newCatalog(t)
	c.add("blue", "mnt")
	c.add("green", "uts")
	c.add("azure", "mnt") // a second name: the first in the alphabet is told
	must(t, os.WriteFile(filepath.Join(c.dir, "file"), nil, 0o600))
	must(t, os.Symlink("/proc/self/ns/none", filepath.Join(c.dir, "dangling")))
	d := c.open()
	c.want(d, "mnt", "azure")
	c.want(d, "uts", "green")
	c.want(d, "ipc", "")
	if got := d.Place(0); got != (trace.Place{}) {
		t.Errorf("Place(0) = %+v, want nothing", got)
	}
	var file unix.Stat_t
	must(t, unix.Stat(filepath.Join(c.dir, "file"), &file))
	if got := d.Place(trace.Netns(file.Ino)); got.Name != "" {
		t.Errorf("a plain file gave the name %q", got.Name)
	}
}

func TestPlaceHost(t *testing.T) {
	c := newCatalog(t)
	d := c.open()
	host := d.Place(d.host.Netns)
	if !host.Host || host.Name != "" || host.PID == 0 {
		t.Errorf("Place(host) = %+v, want the host without a name", host)
	}
	c.add("own", "net")
	if d.host.Netns != c.inode("net") {
		t.Skip("this process is not in the host's network namespace")
	}
	c.pass(time.Second)
	if host = d.Place(d.host.Netns); !host.Host || host.Name != "own" {
		t.Errorf("Place(host) = %+v, want the host with the name own", host)
	}
}

func TestPlaceFollowsNames(t *testing.T) {
	c := newCatalog(t)
	c.add("old", "mnt")
	d := c.open()
	c.want(d, "mnt", "old")

	// the inode is used again under another name
	c.remove("old")
	c.add("new", "mnt")
	c.pass(2 * checkInterval)
	c.want(d, "mnt", "new")

	// a name outlives its namespace, but not for ever
	c.remove("new")
	c.pass(time.Second)
	c.want(d, "mnt", "new")
	c.pass(nameMemory - 2*time.Second)
	c.want(d, "mnt", "new")
	c.pass(4 * time.Second)
	c.want(d, "mnt", "")

	// and comes back when it does
	c.add("again", "mnt")
	c.pass(lastRetry)
	c.want(d, "mnt", "again")
}

func TestPlaceFindsLaterNames(t *testing.T) {
	c := newCatalog(t)
	c.age(time.Hour)
	d := c.open()
	c.want(d, "mnt", "")
	c.add("late", "mnt")
	c.age(time.Hour) // a mount leaves no trace in the directory's time
	c.want(d, "mnt", "")
	c.pass(firstRetry + time.Millisecond)
	c.want(d, "mnt", "late")
}

func TestPlaceScansSeldom(t *testing.T) {
	c := newCatalog(t)
	c.age(time.Hour)
	d := c.open()
	scans := 0
	last := d.scanned
	for i := range 20_000 { // 2 s of one unknown namespace after another
		c.pass(100 * time.Microsecond)
		d.Place(trace.Netns(1 + i))
		if !d.scanned.Equal(last) {
			scans, last = scans+1, d.scanned
		}
	}
	if scans > 41 {
		t.Errorf("%d scans in 2s, want at most one in %s", scans, firstRetry)
	}
	if scans < 3 {
		t.Errorf("%d scans in 2s: unknown namespaces are not looked for", scans)
	}
}

func TestPlaceIsBounded(t *testing.T) {
	c := newCatalog(t)
	c.add("kept", "mnt")
	d := c.open()
	for i := range 5 * maxEntries {
		d.Place(trace.Netns(1 + i))
		if i%100 == 0 {
			c.pass(time.Millisecond)
			c.want(d, "mnt", "kept")
		}
	}
	if n := len(d.entries); n > maxEntries {
		t.Errorf("%d entries, want at most %d", n, maxEntries)
	}
	if _, ok := d.entries[c.inode("mnt")]; !ok {
		t.Error("the namespace that is asked about all the time was forgotten")
	}
}

func TestPlaceOfRealNamespaces(t *testing.T) {
	d, err := NewDirectory()
	must(t, err)
	first := newSpace(t)
	waitFor(t, "name", func() bool { return d.Place(first.inode).Name == first.name })
	if host := d.Place(d.host.Netns); !host.Host {
		t.Errorf("Place(host) = %+v", host)
	}
	handle, err := d.Open(first.inode)
	must(t, err)
	defer handle.Close()
	if got := inodeOf(t, handle); got != first.inode {
		t.Errorf("Open gave namespace %d, want %d", got, first.inode)
	}
}

func TestPlaceOfNamelessNamespace(t *testing.T) {
	needRoot(t)
	cmd := startSleeper(t)
	var stat unix.Stat_t
	must(t, unix.Stat(fmt.Sprintf("/proc/%d/ns/net", cmd), &stat))
	ns := trace.Netns(stat.Ino)
	d, err := NewDirectory()
	must(t, err)
	handle, err := d.Open(ns) // before Place knows of it
	must(t, err)
	handle.Close()
	waitFor(t, "process", func() bool { return d.Place(ns).PID == cmd })
	if place := d.Place(ns); place.Name != "" || place.Host {
		t.Errorf("Place = %+v, want neither name nor host", place)
	}
	handle, err = d.Open(ns)
	must(t, err)
	handle.Close()
}

func TestOpenVerifies(t *testing.T) {
	c := newCatalog(t)
	c.add("wrong", "mnt") // no network namespace
	d := c.open()
	for _, ns := range []trace.Netns{0, 1, c.inode("mnt")} {
		handle, err := d.Open(ns)
		if !errors.Is(err, ErrNoNamespace) {
			handle.Close()
			t.Errorf("Open(%d) = %v, want ErrNoNamespace", ns, err)
		}
	}
	handle, err := d.Open(d.host.Netns)
	if err != nil && strings.Contains(err.Error(), "permission") {
		t.Skip("may not read /proc/1/ns/net")
	}
	must(t, err)
	handle.Close()
}

func TestPlaceConcurrently(t *testing.T) {
	c := newCatalog(t)
	c.add("blue", "mnt")
	d, err := newDirectory(sources{names: c.dir, proc: "/proc"}, time.Now)
	must(t, err)
	var group sync.WaitGroup
	for worker := range 4 {
		group.Go(func() {
			for i := range 20_000 {
				if got := d.Place(c.inode("mnt")); got.Name != "blue" {
					t.Errorf("Place = %+v, want blue", got)
					return
				}
				if i%100 == 0 {
					d.Place(trace.Netns(worker*100_000 + i + 1))
				}
			}
		})
	}
	group.Wait()
}

func BenchmarkPlace(b *testing.B) {
	d, err := NewDirectory()
	must(b, err)
	b.Run("known", func(b *testing.B) {
		for b.Loop() {
			d.Place(d.host.Netns)
		}
	})
	b.Run("unknown", func(b *testing.B) {
		for b.Loop() {
			d.Place(7)
		}
	})
}
