package recorder

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"time"

	"github.com/replypath/replypath/pkg/trace"
)

// Nearly all DNS queries are answered, and there may be very many: those are kept as bytes,
// without pointers. That takes an eighth of the memory, and the garbage collector has
// nothing to look at. What queries have in common is kept once for each chunk.

// chunkBytes is how much is forgotten at a time, when all of it is old.
const chunkBytes = 64 << 10

// chunk holds packed exchanges in the order in which they ended.
type chunk struct {
	data    []byte
	next    int   // of data: where the first one begins that is kept
	shared  int   // bytes beside data
	names   texts // of questions, and of processes
	shapes  []shape
	byShape map[uint64]int
}

// texts are strings, each known by its number.
type texts struct {
	all    []string
	number map[string]int
}

// shape is what the sightings of an exchange have in common with those of others: all but times and counts.
type shape []trace.Sighting

// newChunk returns an empty chunk, in the memory of another one where that is given.
func newChunk(memory []byte) *chunk {
	if memory == nil {
		memory = make([]byte, 0, chunkBytes)
	}
	return &chunk{data: memory, names: texts{number: make(map[string]int)}, byShape: make(map[uint64]int)}
}

// isPackable: it will not change any more, and nothing is special about it.
func isPackable(x *trace.Exchange) bool {
	return (x.Outcome == trace.Answered || x.Outcome == trace.Failed) && !x.Revised && x.Drop == nil && len(x.Response) < chunkBytes/4 && !isOdd(x)
}

// isOdd reports what is not packed.
func isOdd(x *trace.Exchange) bool {
	for i := range x.Sightings {
		if x.Sightings[i].Place == nil {
			return true
		}
	}
	for i := range x.Tuples {
		if x.Tuples[i].Src.Addr().Zone() != "" || x.Tuples[i].Dst.Addr().Zone() != "" {
			return true
		}
	}
	return x.Client.Addr().Zone() != "" || x.Server.Addr().Zone() != "" || x.Responder.Addr().Zone() != ""
}

// add packs an exchange, and returns how many bytes that takes; 0: there is no room.
func (c *chunk) add(x *trace.Exchange) int {
	shared := c.shared
	begin := len(c.data)
	b := append(c.data, 0, 0) // its length comes here
	b = binary.LittleEndian.AppendUint64(b, uint64(x.Last.UnixNano()))
	b = binary.AppendVarint(b, int64(x.Last.Sub(x.First)))
	b = append(b, byte(x.Protocol), byte(x.Outcome), byte(x.Stage), byte(x.Via), flags(x.RD, x.Gone))
	for _, v := range [...]uint64{
		x.Number, uint64(x.ID), uint64(x.Type), uint64(x.Class), uint64(x.Rcode), uint64(x.Latency), uint64(x.Attempts), x.Repeats, x.Twin,
		uint64(x.Process.PID), uint64(x.Process.PGID), uint64(c.text(x.Process.Comm)), uint64(c.text(x.Name)), uint64(x.ResponseLength), uint64(len(x.Response)),
	} {
		b = binary.AppendUvarint(b, v)
	}
	b = append(b, x.Response...)
	for _, at := range [...]netip.AddrPort{x.Client, x.Server, x.Responder} {
		b = appendAddr(b, at)
	}
	b = append(b, byte(len(x.Tuples)))
	for i := range x.Tuples {
		b = appendAddr(appendAddr(append(b, byte(x.Tuples[i].Protocol)), x.Tuples[i].Src), x.Tuples[i].Dst)
	}
	b = binary.AppendUvarint(b, uint64(c.shape(x.Sightings)))
	for i := range x.Sightings {
		b = binary.AppendVarint(b, int64(x.Sightings[i].Time.Sub(x.First)))
		b = binary.AppendUvarint(b, uint64(x.Sightings[i].Count))
	}
	if len(b) > cap(c.data) {
		c.shared = shared // nothing more comes here
		return 0
	}
	binary.LittleEndian.PutUint16(b[begin:], uint16(len(b)-begin))
	c.data = b
	return len(b) - begin + c.shared - shared
}

// text returns a string's number.
func (c *chunk) text(s string) int {
	n, known := c.names.number[s]
	if !known {
		n = len(c.names.all)
		c.names.all = append(c.names.all, s)
		c.names.number[s] = n
		c.shared += withOverhead(len(s) + sizeof[string]() + mapSlot*(sizeof[string]()+sizeof[int]()))
	}
	return n
}

// shape returns the number of the shape of sightings.
func (c *chunk) shape(sightings []trace.Sighting) int {
	hash := uint64(len(sightings))
	for i := range sightings {
		s := &sightings[i]
		hash = hash*0x9e3779b97f4a7c15 ^ uint64(s.Device.Index)<<32 ^ uint64(s.Tuple)<<8 ^ uint64(flags(s.Reply, s.Transmit, s.OtherHost, s.Made))
		hash ^= hash>>29 ^ uint64(s.Place.Netns)
	}
	if n, known := c.byShape[hash]; known && c.shapes[n].is(sightings) {
		return n
	}
	own := slices.Clone(sightings)
	for i := range own {
		own[i].Time, own[i].Count = time.Time{}, 0
	}
	c.shapes = append(c.shapes, own)
	c.byShape[hash] = len(c.shapes) - 1
	c.shared += withOverhead(len(own)*sizeof[trace.Sighting]() + sizeof[shape]() + mapSlot*(sizeof[uint64]()+sizeof[int]()))
	return len(c.shapes) - 1
}

func (s shape) is(sightings []trace.Sighting) bool {
	return slices.EqualFunc(s, sightings, func(a, b trace.Sighting) bool {
		return (a.Place == b.Place || *a.Place == *b.Place) && a.Device == b.Device && a.Tuple == b.Tuple &&
			a.Reply == b.Reply && a.Transmit == b.Transmit && a.OtherHost == b.OtherHost && a.Made == b.Made
	})
}

// isEmpty: all that it held is forgotten.
func (c *chunk) isEmpty() bool { return c.next == len(c.data) }

// oldest is when the first exchange that is kept was last seen.
func (c *chunk) oldest() time.Time {
	return time.Unix(0, int64(binary.LittleEndian.Uint64(c.data[c.next+2:])))
}

// forget forgets the oldest one, and returns how many bytes less are held.
func (c *chunk) forget() int {
	n := int(binary.LittleEndian.Uint16(c.data[c.next:]))
	if c.next += n; c.isEmpty() {
		return n + c.shared
	}
	return n
}

// each unpacks all that are kept.
func (c *chunk) each(since time.Time, tell func(*trace.Exchange)) {
	for at := c.next; at < len(c.data); {
		n := int(binary.LittleEndian.Uint16(c.data[at:]))
		if last := time.Unix(0, int64(binary.LittleEndian.Uint64(c.data[at+2:]))); !last.Before(since) {
			tell(c.unpack(last, unpacker(c.data[at+10:at+n])))
		}
		at += n
	}
}

func (c *chunk) unpack(last time.Time, u unpacker) *trace.Exchange {
	x := &trace.Exchange{Last: last, First: last.Add(-time.Duration(u.signed()))}
	x.Protocol, x.Outcome, x.Stage, x.Via = trace.Protocol(u.byte()), trace.Outcome(u.byte()), trace.Stage(u.byte()), trace.Via(u.byte())
	bits := u.byte()
	x.RD, x.Gone = bits&1 != 0, bits&2 != 0
	x.Number, x.ID, x.Type, x.Class, x.Rcode = u.number(), uint16(u.number()), uint16(u.number()), uint16(u.number()), uint16(u.number())
	x.Latency, x.Attempts, x.Repeats, x.Twin = time.Duration(u.number()), uint32(u.number()), u.number(), u.number()
	x.Process.PID, x.Process.PGID, x.Process.Comm = uint32(u.number()), uint32(u.number()), c.names.all[u.number()]
	x.Name, x.ResponseLength = c.names.all[u.number()], uint32(u.number())
	x.Response = slices.Clone(u.bytes(int(u.number())))
	x.Client, x.Server, x.Responder = u.addr(), u.addr(), u.addr()
	x.Tuples = make([]trace.Tuple, u.byte())
	for i := range x.Tuples {
		x.Tuples[i] = trace.Tuple{Protocol: trace.Protocol(u.byte()), Src: u.addr(), Dst: u.addr()}
	}
	x.Sightings = slices.Clone(c.shapes[u.number()])
	for i := range x.Sightings {
		x.Sightings[i].Time = x.First.Add(time.Duration(u.signed()))
		x.Sightings[i].Count = uint32(u.number())
	}
	return x
}

func flags(bits ...bool) byte {
	var b byte
	for i, set := range bits {
		if set {
			b |= 1 << i
		}
	}
	return b
}

// appendAddr writes how long the address is, the address, and the port.
func appendAddr(b []byte, at netip.AddrPort) []byte {
	switch a := at.Addr(); {
	case a.Is4():
		four := a.As4()
		b = append(append(b, 4), four[:]...)
	case a.IsValid():
		all := a.As16()
		b = append(append(b, 16), all[:]...)
	default:
		b = append(b, 0)
	}
	return binary.LittleEndian.AppendUint16(b, at.Port())
}

// unpacker reads what was packed, and is what is left of it.
type unpacker []byte

func (u *unpacker) byte() byte { return u.bytes(1)[0] }

func (u *unpacker) bytes(n int) []byte {
	b := (*u)[:n:n]
	*u = (*u)[n:]
	return b
}

func (u *unpacker) number() uint64 {
	v, n := binary.Uvarint(*u)
	u.bytes(n)
	return v
}

func (u *unpacker) signed() int64 {
	v, n := binary.Varint(*u)
	u.bytes(n)
	return v
}

func (u *unpacker) addr() netip.AddrPort {
	a, _ := netip.AddrFromSlice(u.bytes(int(u.byte())))
	return netip.AddrPortFrom(a, binary.LittleEndian.Uint16(u.bytes(2)))
}
