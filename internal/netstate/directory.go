package netstate

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

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
	nameMemory     = 5 * time.Minute        // for a namespace whose inode has another one, or none, by now
)

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
	found   found // by the last scan; written with scanning held too
	entries map[trace.Netns]*entry
	located map[trace.Netns]string // paths that somebody named
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

// PlaceThen names the namespace that had an inode at a time: one that is gone
// keeps its name for some minutes. It is as cheap as Place and verifies nothing;
// where no earlier namespace is remembered it gives that of now.
func (d *Directory) PlaceThen(ns trace.Netns, at time.Time) trace.Place {
	place := d.Place(ns)
	now := d.now()
	d.mu.RLock()
	defer d.mu.RUnlock()
	e := d.entries[ns]
	if e == nil || !e.remembers(d.tick(now)) {
		return place
	}
	then, _ := e.then(at, now, d.tick(now))
	return then
}

// PlaceAt names the namespace that had an inode at a time. It reports false
// when that one is gone: inodes are used again as soon as their namespace is.
// Unlike Place it looks whether the name, or the process, still leads there, and
// looks for a process at once.
func (d *Directory) PlaceAt(ns trace.Netns, at time.Time) (trace.Place, bool) {
	place := d.Place(ns)
	if ns == 0 || place.Host && place.Name == "" {
		return place, true
	}
	if place.Name == "" || !d.leadsTo(place) {
		d.lookAgain(ns)
	}
	now := d.now()
	place, same := trace.Place{Netns: ns}, true
	d.mu.RLock()
	if e := d.entries[ns]; e != nil {
		place, same = e.then(at, now, d.tick(now))
	}
	d.mu.RUnlock()
	if same && place.Name == "" && !place.Host && !d.leadsTo(place) {
		place.PID = 0 // it is too early to look for another process
	}
	return place, same
}

// lookAgain scans the names for one namespace, and the processes when it has
// no name, though not all the time.
func (d *Directory) lookAgain(ns trace.Netns) {
	now := d.now()
	d.mu.RLock()
	e := d.entries[ns]
	wait := e != nil && e.place.Name == "" && d.tick(now) < e.verified.Load()
	d.mu.RUnlock()
	if wait {
		return
	}
	d.scanning.Lock()
	d.scan(now)
	d.scanning.Unlock()

	d.mu.RLock()
	place := trace.Place{Netns: ns}
	if e := d.entries[ns]; e != nil {
		place = e.place
	}
	d.mu.RUnlock()
	started := time.Now()
	if place.Name == "" && !place.Host && !d.leadsTo(place) {
		d.lookForProcess(ns)
	}
	pause := max(verifyInterval, scanShare*time.Since(started))
	d.mu.RLock()
	defer d.mu.RUnlock()
	if e := d.entries[ns]; e != nil {
		e.verified.Store(d.tick(now.Add(pause)))
	}
}

// lookForProcess looks for a process in a nameless namespace.
func (d *Directory) lookForProcess(ns trace.Netns) {
	pid, err := d.sources.process(ns)
	if err != nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if e := d.entries[ns]; e != nil && e.place.Name == "" && !e.place.Host {
		e.place.PID = pid
	}
}

// leadsTo reports whether a place's name, or its process when it has none, is
// that of its namespace now.
func (d *Directory) leadsTo(place trace.Place) bool {
	var path string
	switch {
	case place.Name != "":
		path = filepath.Join(d.sources.names, place.Name)
	case place.PID != 0:
		path = d.sources.processPath(place.PID)
	default:
		return false
	}
	inode, ok := namespaceInode(path, d.device)
	return ok && inode == place.Netns
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
		e = &entry{interval: firstRetry, asked: d.tick(now)}
		e.used.Store(d.tick(now))
		d.entries[ns] = e
		d.fill(ns, e, now)
	}
	if !e.known() {
		e.retry = d.tick(now.Add(e.interval))
		e.interval = min(2*e.interval, lastRetry)
		d.findProcesses(now)
	}
	return e.place
}

// fill puts what the last scan said into an entry; moment is when a name that
// it did not find any more went.
func (d *Directory) fill(ns trace.Netns, e *entry, moment time.Time) {
	name, born := d.found.names[ns], d.found.since[ns]
	_, filed := d.found.paths[ns]
	e.place.Netns = ns
	if ns == d.host.Netns {
		e.place.Host, e.place.PID, e.place.Name = true, d.host.PID, name
		return
	}
	forget := d.tick(d.now().Add(nameMemory))
	switch {
	case !born.IsZero() && !(e.filed && born.Equal(e.born)):
		e.succeed(born, forget)
	case e.filed && born.IsZero() && (!filed || name != e.place.Name || !e.born.IsZero()):
		e.succeed(moment, forget)
	}
	e.filed, e.born, e.place.Name = filed, born, name
	if name != "" {
		e.place.PID = 0 // the name is the better way in
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

// scan reads the names. What cannot be read stays as it was, and is read again
// soon. It needs d.scanning.
func (d *Directory) scan(now time.Time) {
	changed := d.sources.changed()
	started := time.Now()
	found, err := d.sources.scan(d.found)
	cost := time.Since(started)

	moment := d.moment(changed, now)
	complete := err == nil || errors.Is(err, fs.ErrPermission) // which another scan would lack too
	if complete {
		d.changed = changed
	}
	d.scanned = now
	d.nextScan = now.Add(max(checkInterval, scanShare*cost))
	d.settled = complete && now.Sub(changed) > settleTime && (!found.pending || now.Sub(changed) > mountTime)

	d.mu.Lock()
	defer d.mu.Unlock()
	d.found = found
	for ns, e := range d.entries {
		e.listed = e.listed || e.asked <= d.tick(now)
		d.fill(ns, e, moment)
	}
}

// moment is when a name went that the last scan still found: when the directory
// changed, unless its time does not fit between that scan and now.
func (d *Directory) moment(changed, now time.Time) time.Time {
	if changed.Equal(d.changed) || changed.Before(d.scanned.Add(-settleTime)) || changed.After(now) {
		return now
	}
	return changed
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
		d.nameProcesses(now)
		d.nextProcess.Store(d.tick(now.Add(max(processesEvery, scanShare*time.Since(started)))))
	}()
}

// nameProcesses gives each nameless namespace that was asked about a process in it.
func (d *Directory) nameProcesses(begun time.Time) {
	pids, err := d.sources.processes()
	if err != nil {
		return // what is known stays
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for ns, e := range d.entries {
		e.searched = e.searched || e.asked <= d.tick(begun)
		if e.place.Name == "" && !e.place.Host {
			e.place.PID = pids[ns]
			e.aged.Store(d.tick(begun.Add(processAge)))
		}
	}
}
