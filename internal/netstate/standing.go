package netstate

import (
	"time"

	"github.com/replypath/replypath/pkg/trace"
)

// Standing is what is known of whether a namespace is there still.
type Standing uint8

// The standings.
const (
	Unknown Standing = iota // names and processes have not been looked through since it was asked about
	Gone                    // or nobody's: without a name and without a process
	There
)

// Standing tells of the namespace that had an inode at a time whether it is there
// still. Unlike PlaceAt it looks for nobody at once, and so costs no scan of its own: what
// is Unknown is looked for in the background, and settled by the time of a later call.
func (d *Directory) Standing(ns trace.Netns, at time.Time) Standing {
	place := d.Place(ns)
	now := d.now()
	d.mu.RLock()
	same, looked := true, false
	if e := d.entries[ns]; e != nil {
		place, same = e.then(at, now, d.tick(now))
		looked = e.listed && e.searched
	}
	d.mu.RUnlock()
	switch {
	case !same:
		return Gone
	case place.Host || d.leadsTo(place):
		return There
	case place.Name == "" && place.PID == 0 && looked:
		return Gone
	case place.Name != "" || place.PID != 0:
		d.doubt(ns, place, now)
	}
	return Unknown
}

// doubt has a namespace looked for anew whose name or process leads elsewhere by now.
func (d *Directory) doubt(ns trace.Netns, place trace.Place, now time.Time) {
	if place.Name != "" { // a name may lead elsewhere though its directory did not change
		d.scanning.Lock()
		d.settled = false
		d.scanning.Unlock()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if e := d.entries[ns]; e != nil && e.place == place {
		e.asked, e.listed, e.searched = d.tick(now), false, false
		e.place.PID = 0
		e.retry, e.interval = 0, firstRetry
	}
}

// Look looks through all names and all processes now, for the namespaces that were asked about.
func (d *Directory) Look() {
	now := d.now()
	d.scanning.Lock()
	d.scan(now)
	d.scanning.Unlock()
	d.nameProcesses(now)
}
