package trace

import (
	"net/netip"
	"time"
)

// Outcome is how a DNS query ended.
type Outcome uint8

// The outcomes.
const (
	Pending     Outcome = iota // it has not ended yet
	Answered                   // the response came, or says that there is no such name
	Failed                     // the response says that something went wrong
	Late                       // the response came when the client did not wait for it any more
	WrongSource                // the response came from another address than the one that was asked
	Unanswered                 // none came in time
	Cancelled                  // the client went away before there was anything to wait for
	OutcomeCount
)

var outcomeNames = [OutcomeCount]string{"pending", "answered", "error", "late", "wrong_source", "unanswered", "cancelled"}

// String returns the outcome's name in the API.
func (o Outcome) String() string {
	if o >= OutcomeCount {
		return "unknown"
	}
	return outcomeNames[o]
}

// Stage is how far a DNS query, or its response, was seen to come.
type Stage uint8

// The stages, in the order in which they are passed.
const (
	StageClient   Stage = iota // it left the client's namespace, or was just made there
	StageRedirect              // its own namespace sent it elsewhere
	StageNAT                   // a host on the way gave it another destination, and sent it on
	StageHop                   // a host on the way, which sent it on or kept it
	StageReceived              // it came to a host that did not send it on
	StageAnswered              // the response left there
	StageReply                 // the response was on its way back
	StageHome                  // the response came to the client's namespace
	StageCount
)

var stageNames = [StageCount]string{"client", "redirect", "nat", "hop", "resolver_received", "resolver_answered", "reply_hop", "client_received"}

// String returns the stage's name in the API.
func (s Stage) String() string {
	if s >= StageCount {
		return "unknown"
	}
	return stageNames[s]
}

// Via is which way a DNS query took.
type Via uint8

// The ways.
const (
	ViaUnknown    Via = iota
	ViaLocal          // client and resolver share a namespace
	ViaDirect         // to the address that was asked
	ViaNodeLocal      // to a resolver in the node's own namespace
	ViaNAT            // to another address, that a host on the way chose
	ViaRedirected     // to another address, within the client's own namespace
	ViaCount
)

var viaNames = [ViaCount]string{"", "local", "direct", "node_local", "nat", "redirected"}

// String returns the way's name in the API; "" when it is not known.
func (v Via) String() string {
	if v >= ViaCount {
		return ""
	}
	return viaNames[v]
}

// Exchange is one DNS query and its end.
type Exchange struct {
	Number   uint64 // of this agent; one that is handed out again keeps it
	Revised  bool   // it was handed out before
	Protocol Protocol
	// Client and Server are what the client meant: before any NAT.
	Client, Server netip.AddrPort
	// Responder is who answered: the resolver's own address, or whoever a wrong answer came from.
	Responder netip.AddrPort
	Process   Process // the client's, where it is on this node

	ID          uint16
	Type, Class uint16
	Rcode       uint16 // of the response's header: EDNS adds to it
	RD          bool
	Name        string // RFC 1035 presentation form

	First    time.Time
	Last     time.Time     // when it was last seen, or given up
	Latency  time.Duration // from the first query to the response; 0: none came
	Attempts uint32        // the same packet sent again counts
	Repeats  uint64        // Number of the exchange that this one asks again; 0: none
	Twin     uint64        // Number of the exchange that was made with this one, for another type; 0: none

	Outcome Outcome
	Stage   Stage
	Via     Via
	Gone    bool  // the client's socket was gone when the response came
	Drop    *Drop // what was dropped last; nil: nothing was seen to be

	// Response is what was read of the response, ResponseLength how long it was.
	Response       []byte
	ResponseLength uint32

	Sightings []Sighting
	Tuples    []Tuple // that packets had, in the direction of the query; sightings refer to them
}

// Drop is a packet that the kernel dropped.
type Drop struct {
	Time           time.Time
	Place          Place
	Device         Device
	Direction      Direction
	Reason, Symbol string
}

// Sighting is a device at which a packet of an exchange was seen.
type Sighting struct {
	Time      time.Time // first
	Place     *Place
	Device    Device
	Count     uint32
	Tuple     uint8 // of Exchange.Tuples
	Reply     bool
	Transmit  bool
	OtherHost bool // addressed to another MAC: bridged, or flooded here
	Made      bool // it was made here, not sent on
}

// TupleOf returns the tuple that a packet had, in its own direction.
func (x *Exchange) TupleOf(s *Sighting) Tuple {
	if int(s.Tuple) >= len(x.Tuples) {
		return Tuple{}
	}
	if s.Reply {
		return x.Tuples[s.Tuple].Reverse()
	}
	return x.Tuples[s.Tuple]
}

// Home is the place where the query was first seen.
func (x *Exchange) Home() Place {
	if len(x.Sightings) == 0 || x.Sightings[0].Place == nil {
		return Place{}
	}
	return *x.Sightings[0].Place
}

// Hops returns the hops of the query, or of the response, as those of a Path.
func (x *Exchange) Hops(d Direction) []Hop {
	var hops []Hop
	for i := range x.Sightings {
		s := &x.Sightings[i]
		if s.Reply != (d == Reply) {
			continue
		}
		last := len(hops) - 1
		same := last >= 0 && s.Place != nil && hops[last].Place.Netns == s.Place.Netns
		switch {
		case s.Transmit && same && hops[last].Out.Index == 0 && !s.Made:
			hops[last].Out, hops[last].Tuple = s.Device, x.TupleOf(s)
		case !s.Transmit && same && hops[last].Out.Index == 0:
			hops[last].In = s.Device // the packet came by a device below: bridge port, VLAN parent
		default:
			h := Hop{Tuple: x.TupleOf(s), First: s.Time, Count: s.Count, Bridged: s.OtherHost}
			if s.Place != nil {
				h.Place = *s.Place
			}
			if s.Transmit {
				h.Out = s.Device
			} else {
				h.In, h.Arrived = s.Device, h.Tuple
			}
			hops = append(hops, h)
		}
	}
	return hops
}

// Held is the longest time in which neither query nor response was seen, and the
// sightings before and after it; nil where there are not two.
func (x *Exchange) Held() (longest time.Duration, before, after *Sighting) {
	for i := 1; i < len(x.Sightings); i++ {
		if d := x.Sightings[i].Time.Sub(x.Sightings[i-1].Time); d > longest || after == nil {
			longest, before, after = d, &x.Sightings[i-1], &x.Sightings[i]
		}
	}
	return longest, before, after
}

// FilterTuples appends the tuples by which a filter knows the exchange: what the client meant, then what was seen.
func (x *Exchange) FilterTuples(dst []Tuple) []Tuple {
	dst = append(dst, Tuple{Protocol: x.Protocol, Src: x.Client, Dst: x.Server})
	return append(dst, x.Tuples...)
}
