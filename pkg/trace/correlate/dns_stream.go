package correlate

import (
	"encoding/binary"
	"time"

	"github.com/replypath/replypath/pkg/trace"
)

// DNS over TCP: each message has its length in front (RFC 1035, section 4.2.2; RFC 7766).
// A segment may hold several messages, and a message may take several segments; of
// a segment only the beginning may have been read. Each hook sees the same bytes, and is
// followed by itself.

const (
	maxStreams = 4096
	streamIdle = 30 * time.Second
	// streamMessage is what is kept of a message that takes several segments.
	streamMessage = 512
)

// streamKey is one direction of a connection at one hook of one device.
type streamKey struct {
	netns  trace.Netns
	device uint32
	hook   trace.Hook
	tuple  trace.Tuple
}

// stream is where in its messages a direction of a connection is.
type stream struct {
	next   uint32 // sequence number of the byte that comes next
	length uint32 // of the message that is under way; 0: its length has not come yet
	seen   uint32 // of its bytes
	begun  []byte // its length's first byte, or what is kept of it
	told   bool   // it was told, as no more will be kept of it
	last   time.Time
}

type streams struct {
	all     map[streamKey]*stream
	expired time.Time
}

func newStreams() streams { return streams{all: make(map[streamKey]*stream)} }

func (s *streams) expire(now time.Time) {
	if now.Sub(s.expired) < streamIdle/4 {
		return
	}
	s.expired = now
	for k, one := range s.all {
		if now.Sub(one.last) >= streamIdle {
			delete(s.all, k)
		}
	}
}

// add takes in a segment, and tells the messages that begin in it, or are now whole enough to be told.
func (s *streams) add(ev *trace.Event, tell teller, stats *DNSStats) {
	k := streamKey{ev.Netns, ev.Device.Index, ev.Hook, ev.Tuple}
	one := s.all[k]
	seq := ev.Seq
	if ev.Flags.Has(trace.SYN) {
		seq++ // TCP Fast Open
	}
	if one == nil {
		if len(s.all) >= maxStreams {
			clear(s.all)
		}
		one = &stream{next: seq}
		s.all[k] = one
	}
	one.last = ev.Time
	data, length := ev.Payload, ev.PayloadLength
	if behind := one.next - seq; int32(behind) > 0 { // sent again
		if behind >= length {
			return
		}
		data, length = data[min(int(behind), len(data)):], length-behind
	} else if behind != 0 {
		one.miss(seq-one.next, ev, tell, stats)
	}
	one.next = seq + ev.PayloadLength
	one.read(data, ev, tell)
	if cut := length - uint32(len(data)); cut > 0 {
		one.miss(cut, ev, tell, stats)
	}
}

// teller takes a message, of which there is the beginning, and how long it is.
type teller func(*trace.Event, []byte, uint32)

// miss passes over bytes that were not read: within a message nothing is lost by that.
func (s *stream) miss(n uint32, ev *trace.Event, tell teller, stats *DNSStats) {
	if s.length != 0 && n <= s.length-s.seen {
		s.tell(ev, tell)
		if s.seen += n; s.seen == s.length {
			s.begin()
		}
		return
	}
	// Where the next message begins is not known: most begin with a segment.
	if s.length != 0 {
		s.tell(ev, tell)
	}
	stats.Unfollowed++
	s.begin()
}

func (s *stream) tell(ev *trace.Event, tell teller) {
	if !s.told {
		s.told = true
		tell(ev, s.begun, s.length)
	}
}

func (s *stream) begin() { s.length, s.seen, s.begun, s.told = 0, 0, s.begun[:0], false }

// read goes through bytes, from message to message.
func (s *stream) read(data []byte, ev *trace.Event, tell teller) {
	for len(data) > 0 {
		if s.length == 0 {
			s.begun = append(s.begun, data[0])
			data = data[1:]
			if len(s.begun) == 2 {
				s.length = uint32(binary.BigEndian.Uint16(s.begun))
				s.begun = s.begun[:0]
			}
			continue
		}
		n := min(int(s.length-s.seen), len(data))
		if kept := len(s.begun); !s.told {
			s.begun = append(s.begun, data[:min(n, streamMessage-kept)]...)
		}
		s.seen += uint32(n)
		data = data[n:]
		if s.seen == s.length || len(s.begun) == streamMessage {
			s.tell(ev, tell)
		}
		if s.seen == s.length {
			s.begin()
		}
	}
}
