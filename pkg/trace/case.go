package trace

// Symptom is what opened a case.
type Symptom uint8

// The symptoms.
const (
	SymptomDrop          Symptom = iota + 1 // the kernel dropped a packet of the exchange
	SymptomSilence                          // a connection request came in, and nothing went out
	SymptomRefused                          // a connection request was answered with a reset, as no socket took it
	SymptomLoop                             // a packet's hop limit ran out
	SymptomDeaf                             // a host that is there does not answer for its address
	SymptomTooBig                           // packets too big for a device go on being sent, or the ICMP error about them was dropped
	SymptomStray                            // a host sent a request back where it came from, and no answer came
	SymptomAstray                           // a host sent a reply to a router that has no way to the client
	SymptomAsked                            // nothing yet: somebody says that this host is to answer for the packet's destination
	SymptomMisaddressed                     // an answer came back with another source than the one that was asked
	SymptomVanished                         // a packet left a host, and nobody saw it again, or the wrong host did
	SymptomUnmatched                        // a packet of a live connection came to a host that does not know it
	SymptomSwallowed                        // a packet to another MAC came in at a device, nobody saw it again, and the request was repeated
	SymptomMisled                           // a packet left a host for the MAC address of a neighbour entry, and was lost
	SymptomUnanswered                       // a DNS query got no response
	SymptomErrorResponse                    // a DNS response says that something went wrong
	SymptomLate                             // a DNS response came when nobody waited for it any more
	SymptomAmplified                        // a DNS name was asked for under many others first
	SymptomPassed                           // nothing failed that was seen: a connection began or ended where there may be a proxy
	SymptomUnsent                           // connect() or sendto() from or to a loopback address found no way by lo: there was no packet
)

// String returns the symptom's name.
func (s Symptom) String() string {
	switch s {
	case SymptomDrop:
		return "drop"
	case SymptomSilence:
		return "silence"
	case SymptomRefused:
		return "refused"
	case SymptomLoop:
		return "loop"
	case SymptomDeaf:
		return "deaf"
	case SymptomTooBig:
		return "too big"
	case SymptomStray:
		return "stray"
	case SymptomAstray:
		return "astray"
	case SymptomAsked:
		return "asked"
	case SymptomMisaddressed:
		return "misaddressed"
	case SymptomVanished:
		return "vanished"
	case SymptomUnmatched:
		return "unmatched"
	case SymptomSwallowed:
		return "swallowed"
	case SymptomMisled:
		return "misled"
	case SymptomPassed:
		return "passed"
	case SymptomUnsent:
		return "unsent"
	case SymptomUnanswered:
		return "unanswered"
	case SymptomErrorResponse:
		return "error response"
	case SymptomLate:
		return "late"
	case SymptomAmplified:
		return "amplified"
	}
	return "unknown"
}

// Case is a path under suspicion, with what was seen of it.
type Case struct {
	Symptom   Symptom
	Direction Direction // of the packet that the symptom is about
	Path      Path
	Event     Event // the one that shows the symptom; for a silence, the request's arrival
	// Arrival is the event with which the packet came into the namespace; zero when it was made there or not seen.
	Arrival Event
	// Miss is the route lookup that failed for the packet, or for its answer; zero when none was seen.
	Miss Event
	// Rejected: an ICMP error or a reset was sent for this very packet.
	Rejected bool
	// TooBig is the ICMP error that said that a packet of the path is too big, where it was sent; zero when none was seen.
	TooBig Event
	// TooBigPlace is the namespace that sent it.
	TooBigPlace Place
	// Verdict is what netfilter itself said of the packet that it dropped, where the kernel lets it be asked.
	Verdict Verdict
	Place   Place // the namespace
	// Asked: nothing has happened. The case is what would, says the state of the hosts.
	Asked bool
	// Suspect says that the symptom showed elsewhere, and that this host is looked at first.
	Suspect bool
	// Proxied: a namespace's own rules sent the connection to a socket there. Repeats is how many times
	// who takes such connections was seen to make one that came back to it.
	Proxied bool
	Repeats uint32
	Looped  *Path // one of those; nil: none
	// Leg is the part of the path that Event is about, where it is one of several that a proxy joins.
	Leg Tuple

	Trouble *Trouble // the DNS query that it is about; nil: it is about packets
	// DNS is the DNS question that the packet asked: "A www.example.com."; "": none, or not known.
	DNS string
	// Truncated is the DNS question whose truncated answer the connection is to make good; "": none.
	Truncated string
	Resolved  Resolved // how the client came to know the server's address
}
