package netstate

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/replypath/replypath/pkg/trace"
)

// Bounds and intervals of a Directory.
const (
	maxEntries     = 4096                   // namespaces that were asked about and are remembered
	checkInterval  = 10 * time.Millisecond  // between looks at the name directory's time
	scanShare      = 20                     // a scan's duration times this passes before the next: at most 5% of a core
	settleTime     = 20 * time.Millisecond  // a directory changed later than this before a scan is scanned again
	mountTime      = time.Second            // ip netns add makes a file first, and mounts the namespace on it without a trace
	firstRetry     = 50 * time.Millisecond  // for a namespace that no scan knew
	lastRetry      = 2 * time.Second        //
	processesEvery = time.Second            // between scans of /proc
	processAge     = 5 * time.Second        // after which a process is looked for again
	verifyInterval = 100 * time.Millisecond // between looks for the name of a nameless namespace that is to be blamed
	nameMemory     = 5 * time.Minute        // for the name of a namespace that is gone
)

// ErrNoNamespace says that a network namespace cannot be reached: it is gone,
// or has neither a name nor a process.
var ErrNoNamespace = errors.New("no such network namespace")

// Directory gives network namespaces their names, and opens them. It is safe
// for concurrent use.
type Directory struct {
	sources sources
	now     func() time.Time
	device  uint64    // of nsfs
	started time.Time // ticks count from here, so that a clock that is set does not matter
	host    trace.Place

	nextCheck atomic.Int64 // tick

	scanning    sync.Mutex // one scan at a time
	scanned     time.Time  // end of the last scan of names
	nextScan    time.Time
	settled     bool
	changed     time.Time // the name directory's mtime at the last scan
	processing  atomic.Bool
	nextProcess atomic.Int64

	mu      sync.RWMutex
	names   map[trace.Netns]string // of now
	paths   map[trace.Netns]string // of now, names' directory and others
	since   map[trace.Netns]time.Time
	entries map[trace.Netns]*entry
}

// entry is what is remembered of a namespace that was asked about.
type entry struct {
	place    trace.Place
	since    time.Time    // when the named namespace got its inode; zero: not known
	previous trace.Place  // the namespace that had the inode before
	verified atomic.Int64 // nameless: tick when its name was last looked for on purpose
	used     atomic.Int64 // tick
	forget   int64        // tick when the name of a namespace that is gone expires; 0: it is not gone
	retry    int64        // unknown: tick when to look again
	interval time.Duration
	aged     atomic.Int64 // nameless: tick when to look for a process again
}

// known reports whether there is something to say of the namespace.
func (e *entry) known() bool {
	return e.place.Name != "" || e.place.Host || e.place.PID != 0
}

// NewDirectory reads the names that there are now.
func NewDirectory() (*Directory, error) {
	return newDirectory(hostSources(), time.Now)
}

func newDirectory(from sources, now func() time.Time) (*Directory, error) {
	host, err := from.host()
	if err != nil {
		return nil, fmt.Errorf("find own network namespace: %w", err)
	}
	start := now()
	d := &Directory{sources: from, now: now, device: from.device(), started: start, host: host, entries: make(map[trace.Netns]*entry)}
	d.scanning.Lock()
	d.scan(start)
	d.scanning.Unlock()
	return d, nil
}

// tick is a time as nanoseconds since the directory was made, by the monotonic clock.
func (d *Directory) tick(t time.Time) int64 { return int64(t.Sub(d.started)) }

// Place names a namespace. It is cheap: mostly one look at a clock and a map.
// A namespace that is not known is looked for under /run/netns at once, and
// among the processes in the background, so that a later call may know more.
func (d *Directory) Place(ns trace.Netns) trace.Place {
	if ns == 0 {
		return trace.Place{}
	}
	now := d.now()
	d.check(now)
	if place, ok := d.remembered(ns, now); ok {
		return place
	}
	return d.find(ns, now)
}

// PlaceAt names the namespace that had an inode at a time. It reports false
// when that one is gone: inodes are used again as soon as their namespace is.
// Unlike Place it looks whether the name still leads there.
func (d *Directory) PlaceAt(ns trace.Netns, at time.Time) (trace.Place, bool) {
	place := d.Place(ns)
	if ns == 0 || place.Host && place.Name == "" {
		return place, true
	}
	if !d.leadsTo(place.Name, ns) {
		place = d.lookAgain(ns)
	}
	now := d.now()
	d.mu.RLock()
	defer d.mu.RUnlock()
	e := d.entries[ns]
	if e == nil || e.place.Name == "" || !at.Before(e.since) || e.since.After(now) {
		return place, true
	}
	if e.previous.Netns == 0 {
		return trace.Place{Netns: ns}, false
	}
	return e.previous, false
}

// lookAgain scans the names for one namespace, though not all the time for one that has none.
func (d *Directory) lookAgain(ns trace.Netns) trace.Place {
	now := d.now()
	d.mu.RLock()
	e := d.entries[ns]
	wait := e != nil && d.tick(now) < e.verified.Load()
	d.mu.RUnlock()
	if !wait {
		d.scanning.Lock()
		d.scan(now)
		d.scanning.Unlock()
		d.mu.RLock()
		if e := d.entries[ns]; e != nil {
			e.verified.Store(d.tick(now.Add(verifyInterval)))
		}
		d.mu.RUnlock()
	}
	d.mu.RLock()
	defer d.mu.RUnlock()
	if e := d.entries[ns]; e != nil {
		return e.place
	}
	return trace.Place{Netns: ns}
}

// leadsTo reports whether a name is that of the namespace now.
func (d *Directory) leadsTo(name string, ns trace.Netns) bool {
	if name == "" {
		return false
	}
	inode, ok := namespaceInode(filepath.Join(d.sources.names, name), d.device)
	return ok && inode == ns
}

// remembered answers from memory, unless it is time to look again.
func (d *Directory) remembered(ns trace.Netns, now time.Time) (trace.Place, bool) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	e := d.entries[ns]
	if e == nil {
		return trace.Place{}, false
	}
	at := d.tick(now)
	e.used.Store(at)
	if e.forget != 0 && at > e.forget {
		return trace.Place{}, false
	}
	if !e.known() {
		return e.place, at < e.retry
	}
	if e.place.Name == "" && !e.place.Host && at > e.aged.Load() {
		e.aged.Store(at + int64(processAge))
		d.findProcesses(now)
	}
	return e.place, true
}

// check scans the names again if their directory changed.
func (d *Directory) check(now time.Time) {
	next := d.nextCheck.Load()
	if d.tick(now) < next || !d.nextCheck.CompareAndSwap(next, d.tick(now)+int64(checkInterval)) {
		return
	}
	d.scanning.Lock()
	defer d.scanning.Unlock()
	if now.Before(d.nextScan) {
		return
	}
	if changed := d.sources.changed(); !d.settled || !changed.Equal(d.changed) {
		d.scan(now)
	}
}

// find looks for a namespace that memory does not know.
func (d *Directory) find(ns trace.Netns, now time.Time) trace.Place {
	d.scanning.Lock()
	if !now.Before(d.nextScan) && now.Sub(d.scanned) >= firstRetry {
		d.scan(now)
	}
	d.scanning.Unlock()

	d.mu.Lock()
	defer d.mu.Unlock()
	e := d.entries[ns]
	if e == nil {
		d.makeRoom()
		e = &entry{interval: firstRetry}
		e.used.Store(d.tick(now))
		d.entries[ns] = e
	}
	if e.forget != 0 && d.tick(now) > e.forget {
		e.place.Name, e.forget = "", 0
	}
	d.fill(ns, e)
	if !e.known() {
		e.retry = d.tick(now.Add(e.interval))
		e.interval = min(2*e.interval, lastRetry)
		d.findProcesses(now)
	}
	return e.place
}

// fill puts what the last scan said into an entry. A name outlives its
// namespace: packets of it may be asked about later.
func (d *Directory) fill(ns trace.Netns, e *entry) {
	e.place.Netns = ns
	if ns == d.host.Netns {
		e.place.Host, e.place.PID = true, d.host.PID
	}
	if name, ok := d.names[ns]; ok {
		if since := d.since[ns]; e.place.Name != "" && (e.place.Name != name || !since.Equal(e.since)) {
			e.previous = e.place
		}
		e.place.Name, e.since, e.forget = name, d.since[ns], 0
		if !e.place.Host {
			e.place.PID = 0 // the name is the better way in, and the number may be of an earlier namespace
		}
		return
	}
	if e.place.Name != "" && e.forget == 0 {
		e.forget = d.tick(d.now().Add(nameMemory))
	}
}

// makeRoom forgets the eighth of the entries that was asked about longest ago.
func (d *Directory) makeRoom() {
	if len(d.entries) < maxEntries {
		return
	}
	ages := make([]int64, 0, len(d.entries))
	for _, e := range d.entries {
		ages = append(ages, e.used.Load())
	}
	slices.Sort(ages)
	limit := ages[len(ages)/8]
	for ns, e := range d.entries {
		if e.used.Load() <= limit && len(d.entries) > maxEntries*7/8 {
			delete(d.entries, ns)
		}
	}
}

// scan reads the names. It needs d.scanning.
func (d *Directory) scan(now time.Time) {
	changed := d.sources.changed()
	started := time.Now()
	found := d.sources.scan()
	cost := time.Since(started)

	d.changed = changed
	d.scanned = now
	d.nextScan = now.Add(max(checkInterval, scanShare*cost))
	d.settled = now.Sub(changed) > settleTime && (!found.pending || now.Sub(changed) > mountTime)

	d.mu.Lock()
	defer d.mu.Unlock()
	d.names, d.paths, d.since = found.names, found.paths, found.since
	for ns, e := range d.entries {
		d.fill(ns, e)
	}
}

// findProcesses looks for processes in the nameless namespaces that were asked
// about, in the background, not too often.
func (d *Directory) findProcesses(now time.Time) {
	if d.tick(now) < d.nextProcess.Load() || !d.processing.CompareAndSwap(false, true) {
		return
	}
	go func() {
		defer d.processing.Store(false)
		started := time.Now()
		pids := d.sources.processes()
		d.nextProcess.Store(d.tick(now.Add(max(processesEvery, scanShare*time.Since(started)))))
		d.mu.Lock()
		defer d.mu.Unlock()
		for ns, e := range d.entries {
			if e.place.Name == "" && !e.place.Host {
				e.place.PID = pids[ns]
				e.aged.Store(d.tick(now.Add(processAge)))
			}
		}
	}()
}

// Open opens a namespace by its name, or else by a process in it, and verifies
// that it is the one: names, inodes and process numbers are all used again. The caller
// closes the handle. The error is ErrNoNamespace when there is no way to it.
func (d *Directory) Open(ns trace.Netns) (netns.NsHandle, error) {
	if ns == 0 {
		return netns.None(), ErrNoNamespace
	}
	if handle, ok := d.openKnown(ns); ok {
		return handle, nil
	}
	d.scanning.Lock()
	d.scan(d.now())
	d.scanning.Unlock()
	if handle, ok := d.openKnown(ns); ok {
		return handle, nil
	}
	if pid := d.sources.process(ns); pid != 0 {
		if handle, ok := openVerified(d.sources.processPath(pid), ns); ok {
			return handle, nil
		}
	}
	return netns.None(), fmt.Errorf("open network namespace %d: %w", ns, ErrNoNamespace)
}

// openKnown tries the ways that are known.
func (d *Directory) openKnown(ns trace.Netns) (netns.NsHandle, bool) {
	d.mu.RLock()
	path := d.paths[ns]
	pid := 0
	if e := d.entries[ns]; e != nil {
		pid = e.place.PID
	}
	d.mu.RUnlock()
	if path != "" {
		if handle, ok := openVerified(path, ns); ok {
			return handle, true
		}
	}
	if ns == d.host.Netns {
		if handle, ok := openVerified(d.sources.hostPath(), ns); ok {
			return handle, true
		}
	}
	if pid != 0 {
		return openVerified(d.sources.processPath(pid), ns)
	}
	return netns.None(), false
}

// openVerified opens a path if it leads to the namespace.
func openVerified(path string, ns trace.Netns) (netns.NsHandle, bool) {
	handle, inode, err := openNamespace(path)
	if err != nil {
		return netns.None(), false
	}
	if inode != ns {
		handle.Close()
		return netns.None(), false
	}
	return handle, true
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
		return 0, errors.New("not a network namespace")
	}
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		return 0, err
	}
	return trace.Netns(stat.Ino), nil
}
