package trace

import "time"

// Direction of a path.
type Direction uint8

// The directions.
const (
	DirectionUnknown Direction = iota
	Request                    // from client to server
	Reply                      // from server to client
)

// String returns "REQUEST" or "REPLY".
func (d Direction) String() string {
	switch d {
	case Request:
		return "REQUEST"
	case Reply:
		return "REPLY"
	}
	return "DIRECTION_UNSPECIFIED"
}

// Confidence says how sure a finding is.
type Confidence uint8

// The degrees of confidence.
const (
	Possible Confidence = iota + 1 // the evidence fits, and fits something else too
	Likely                         // one step is inferred
	Certain                        // the kernel said so, or its state leaves nothing else
)

// String returns the lower-case word.
func (c Confidence) String() string {
	switch c {
	case Possible:
		return "possible"
	case Likely:
		return "likely"
	case Certain:
		return "certain"
	}
	return "unknown"
}

// Severity says how bad a finding is for the client.
type Severity uint8

// The severities.
const (
	Info    Severity = iota + 1 // worth knowing
	Warning                     // it costs time or will break
	Error                       // the exchange failed
)

// String returns the lower-case word.
func (s Severity) String() string {
	switch s {
	case Info:
		return "info"
	case Warning:
		return "warning"
	case Error:
		return "error"
	}
	return "unknown"
}

// Where says where a fault is mended.
type Where struct {
	Node   string
	Place  Place
	Device string
	Hook   string // netfilter hook for a filter's drop, else the kernel hook
}

// Evidence is one thing seen, at a time.
type Evidence struct {
	Time time.Time
	Text string
	// Series: of what says the same thing again and again with another number,
	// only the first and the latest are of interest; "" for what stands alone.
	Series string
}

// Finding is a diagnosed fault. One fault is one finding, however many
// connections meet it: two faults are the same when they have the same Key.
type Finding struct {
	ID         string
	Severity   Severity
	Confidence Confidence
	Direction  Direction
	Summary    string
	Cause      string
	Fix        []string // shell commands; a line that starts with # needs a decision first
	Verify     []string // shell commands that show whether the fix helped
	Fault      string   // what has to be mended, in words that no connection and no place's name changes
	Where      Where
	Path       Path // the connection that showed it first
	Evidence   []Evidence
	Count      uint32 // packets or attempts that met the fault
	FirstSeen  time.Time
	LastSeen   time.Time

	// Connections are the connections that met the fault, oldest first; Omitted counts those not kept.
	Connections []Connection
	Omitted     uint32
}

// FaultKey tells faults apart.
type FaultKey struct {
	ID        string
	Direction Direction
	Netns     Netns // where it is mended
	Fault     string
}

// Key is the key of the finding's fault.
func (f *Finding) Key() FaultKey {
	return FaultKey{f.ID, f.Direction, f.Where.Place.Netns, f.Fault}
}

// Connection is one exchange that met a fault, as its client meant it.
type Connection struct {
	Tuple
	Count uint32
	Last  time.Time
}
