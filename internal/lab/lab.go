package lab

import (
	"time"

	"github.com/replypath/replypath/pkg/trace"
)

// Outcome is what the client of a lab got to see.
type Outcome string

// The outcomes. NotRun stands before the first Traffic.
const (
	NotRun      Outcome = ""
	Connected   Outcome = "connected"   // every connection was made and its line echoed
	Refused     Outcome = "refused"     // ECONNREFUSED
	Unreachable Outcome = "unreachable" // EHOSTUNREACH, ENETUNREACH or EACCES: an ICMP error came
	Timeout     Outcome = "timeout"     // no answer
	Broken      Outcome = "broken"      // connected, but the line did not come back
	Failed      Outcome = "failed"      // of a lab: any of these but Connected, as kernels differ
)

// Fits reports whether what a client got to see is what a lab says it does.
func (o Outcome) Fits(seen Outcome) bool {
	return o == seen || o == Failed && seen != Connected && seen != NotRun
}

// Lab is one network, healthy or with one fault, and what there is to find in it.
type Lab struct {
	Name      string // lower-case letters, digits and dashes
	Title     string // one line
	Doc       string // what happens to the packets, and why
	Finding   string // id of the one finding; "" for a healthy lab
	Direction trace.Direction
	Where     string // host at which the fault is mended; "" for a healthy lab
	Outcome   Outcome
	Topology  Topology
	Setting   []Change // harmless on its own: what this variant has besides its topology
	Faults    []Change // what is wrong
	Midway    []Change // what happens while the client's connections live

	// Unforeseen says why `replypath check reply` cannot know what there is before
	// there is traffic; "" where it must.
	Unforeseen string
}

// Healthy reports whether there is nothing to find.
func (l Lab) Healthy() bool { return l.Finding == "" }

// All returns the labs in a stable order: healthy ones first, then by finding.
func All() []Lab {
	var labs []Lab
	for _, part := range []func(Family) []Lab{
		healthyLabs, routeLabs, requestRouteLabs, reversePathLabs, neighborLabs, forwardingLabs, addressLabs, lostVIPLabs, filterLabs, listenerLabs, udpLabs, mtuLabs, silentLabs, fragmentLabs,
		programLabs, trackingLabs, tunnelLabs, antreaLabs, shapeLabs, beliefLabs, switchLabs, dnsLabs, meshLabs,
	} {
		labs = append(labs, part(IPv4)...)
		labs = append(labs, part(IPv6)...)
	}
	return labs
}

// Find returns the lab of that name.
func Find(name string) (Lab, bool) {
	for _, l := range All() {
		if l.Name == name {
			return l, true
		}
	}
	return Lab{}, false
}

// connectTimeout gives time for three SYNs: at 0, 1 and 3 s.
const connectTimeout = 3500 * time.Millisecond

// neighborTimeout outlives the kernel's three requests, one second apart, and a fourth SYN's worth of doubt.
const neighborTimeout = 5500 * time.Millisecond
