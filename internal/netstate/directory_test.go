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

	// a name that is gone is not that of what has the inode now
	c.remove("new")
	c.pass(time.Second)
	c.want(d, "mnt", "")

	// and comes back when it does
	c.add("again", "mnt")
	c.pass(lastRetry)
	c.want(d, "mnt", "again")
}

func TestPlaceThen(t *testing.T) {
	c := newCatalog(t)
	c.add("old", "mnt")
	d := c.open()
	c.want(d, "mnt", "old")
	ns := c.inode("mnt")
	while := c.now.Add(time.Second)
	c.pass(2 * time.Second)
	c.remove("old")
	removed := c.now
	c.age(0) // the directory's time, by the test's clock

	c.pass(time.Minute) // nobody asked for a while
	c.wantThen(d, ns, while, "old", false)
	c.wantThen(d, ns, removed.Add(time.Millisecond), "", true)
	c.wantThen(d, ns, c.now, "", true)

	c.pass(nameMemory + time.Second)
	if got, same := d.PlaceAt(ns, while); got != (trace.Place{Netns: ns}) || same {
		t.Errorf("PlaceAt = %+v, %v; want no name any more, and that it is gone", got, same)
	}
	if got := d.PlaceThen(ns, while); got.Name != "" {
		t.Errorf("PlaceThen = %+v, want no name any more", got)
	}
}

// A link to a process's namespace, as people make for containers, stays one namespace.
func TestPlaceAtOfLink(t *testing.T) {
	c := newCatalog(t)
	d := c.open()
	while := c.now
	c.want(d, "uts", "")
	c.add("container", "uts")
	for range 5 {
		c.pass(time.Second)
		c.age(0)
		time.Sleep(10 * time.Millisecond) // the kernel's clock for files
		c.wantThen(d, c.inode("uts"), while, "container", true)
	}
}

// wantThen asks both for the namespace that had an inode at a time.
func (c *catalog) wantThen(d *Directory, ns trace.Netns, at time.Time, name string, same bool) {
	c.t.Helper()
	if got := d.PlaceThen(ns, at); got.Name != name || got.Netns != ns {
		c.t.Errorf("PlaceThen = %+v, want name %q", got, name)
	}
	if got, ok := d.PlaceAt(ns, at); got.Name != name || got.Netns != ns || ok != same {
		c.t.Errorf("PlaceAt = %+v, %v; want name %q, %v", got, ok, name, same)
	}
}

func TestEntryThen(t *testing.T) {
	start := time.Now()
	second := func(n int) time.Time { return start.Add(time.Duration(n) * time.Second) }
	named := func(name string) trace.Place { return trace.Place{Netns: 7, Name: name} }
	const forget = 1000
	tests := []struct {
		name  string
		place trace.Place
		at    int
		now   int
		tick  int64
		want  trace.Place
		same  bool
	}{
		{"now", named("b"), 30, 40, 0, named("b"), true},
		{"from its first moment", named("b"), 20, 40, 0, named("b"), true},
		{"between the two", named("b"), 15, 40, 0, named(""), false},
		{"before", named("b"), 9, 40, 0, named("a"), false},
		{"before, long ago", named("b"), 9, 40, forget + 1, named(""), false},
		{"nameless now", trace.Place{Netns: 7, PID: 5}, 9, 40, 0, named("a"), false},
		{"the clock was set back", named("b"), 9, 19, 0, named("b"), true},
		{"the host is always there", trace.Place{Netns: 7, Host: true, Name: "b"}, 9, 40, 0, trace.Place{Netns: 7, Host: true, Name: "b"}, true},
	}
	for _, test := range tests {
		e := &entry{place: test.place, since: second(20), previous: named("a"), until: second(10), forget: forget}
		if got, same := e.then(second(test.at), second(test.now), test.tick); got != test.want || same != test.same {
			t.Errorf("%s: %+v, %v; want %+v, %v", test.name, got, same, test.want, test.same)
		}
	}
}

func TestEntrySucceed(t *testing.T) {
	start := time.Now()
	e := &entry{place: trace.Place{Netns: 7}}
	e.succeed(start, 1)
	if e.previous.Netns != 0 {
		t.Errorf("previous %+v, but nothing was known", e.previous)
	}
	e.place.Name = "a"
	e.succeed(start.Add(time.Second), 2) // nameless
	e.succeed(start.Add(2*time.Second), 3)
	e.place.Name = "b"
	if e.previous.Name != "a" || !e.until.Equal(start.Add(time.Second)) || !e.since.Equal(start.Add(2*time.Second)) {
		t.Errorf("previous %+v until %v: a moment without a name made it forgotten", e.previous, e.until)
	}
	e.succeed(start.Add(3*time.Second), 4)
	e.place.PID = 5
	e.succeed(start.Add(4*time.Second), 5)
	if e.previous.PID != 5 || e.place.PID != 0 {
		t.Errorf("previous %+v, now %+v: want the process to go with its namespace", e.previous, e.place)
	}
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

// A namespace is gone once names and processes were looked through, not before.
func TestStanding(t *testing.T) {
	c := newCatalog(t)
	d := c.open()
	ns, at := c.inode("mnt"), c.now
	stands := func(want Standing, what string) {
		t.Helper()
		if got := d.Standing(ns, at); got != want {
			t.Errorf("%s: %d, want %d", what, got, want)
		}
	}
	d.nextScan = c.now.Add(time.Hour) // scans cost a lot here
	d.processing.Store(true)
	c.add("late", "mnt")
	stands(Unknown, "not looked for yet")
	d.Look()
	stands(There, "found")
	c.remove("late")
	stands(Unknown, "its name leads nowhere")
	d.Look()
	stands(Gone, "looked for")
}
