package correlate

import (
	"container/list"
	"net/netip"
	"time"

	"github.com/replypath/replypath/pkg/trace"
)

// Bounds of one path.
const (
	maxHops   = 24 // in each direction
	maxTuples = 16 // different tuples: one more for each NAT on the way
)

// path is an exchange that is still followed.
type path struct {
	seq            uint32 // of its SYN
	opens          uint32 // its key in Table.opened
	next           *path  // another path with the same seq
	protocol       trace.Protocol
	client, server netip.AddrPort
	request, reply []hop
	tuples         []trace.Tuple // in request direction, as seen on the way
	keys           []tupleKey    // its entries in Table.tuples
	first, last    time.Time
	requests       uint32
	answered       bool
	guessed        bool // who is the client
	reset          bool
	adopted        bool    // it began before we looked: seq is not that of its SYN
	established    bool    // a socket said that both sides have heard of each other
	closed         bool    // both sides have sent a FIN, or one a RST
	fins           [2]bool // by direction: a FIN was seen
	changed        bool    // since it was last handed out
	process        trace.Process
	skb            uint64       // of the packet seen last
	drops          uint32       // of packets after the handshake
	tunnelDrops    uint32       // of its handshake, within tunnels
	switchDrops    uint32       // of its handshake, or of its datagrams, by Open vSwitch
	miss           *trace.Event // failed route lookup seen last
	replied        time.Time    // when a SYN-ACK, or a socket that it established, was seen last
	rejection      rejection
	untaken        *trace.Event // SYN dropped where sockets are looked for, without a reason
	refused        uint64       // packet that was refused last
	refusedAt      time.Time
	astray         *trace.Event     // an answer that came back from elsewhere than the request went to
	unwanted       trace.Tuple      // of the reset that refuses it
	circled        time.Time        // when a case about its circling was opened last
	sources        []netip.AddrPort // its entries in Table.sources
	element        *list.Element    // in Table.recent
	tooBig         *tooBig          // nil while nobody has said so
	joined         joined           // with what a proxy goes on, or goes on from

	// UDP alone.
	clientKey clientKey     // where the client's socket is; zero when that was not seen
	opened    trace.Symptom // of the case that was opened last, its namespace and time
	openedIn  trace.Netns
	openedAt  time.Time
	// tunnelDropped is when a tunnel's packet with a datagram of the path was dropped first.
	tunnelDropped time.Time
}

// rejection is an ICMP error or reset that a namespace made because of a packet of the path.
type rejection struct {
	netns trace.Netns
	skb   uint64
	at    time.Time
}

// reject notes the namespace that made an ICMP error or reset. False: it was
// made above, and only leaves by this one's device (that of a macvlan or ipvlan).
func (p *path) reject(ev *trace.Event) bool {
	if r := &p.rejection; r.skb != 0 && r.skb == ev.SKB && r.netns != ev.Netns && ev.Time.Sub(r.at) < packetAge {
		return false
	}
	p.rejection = rejection{ev.Netns, ev.SKB, ev.Time}
	return true
}

// hop is a namespace that packets of one direction passed.
type hop struct {
	netns     trace.Netns
	in, out   trace.Device
	port      uint32 // ifindex of the first device that it came in by: the bridge port below a bridge
	tuple     trace.Tuple
	first, at time.Time // first and latest arrival (or departure, when made here)
	count     uint32
	skb       uint64
	mac       [6]byte
	mark      uint32
	otherHost bool
	pending   bool // came in, and has not left yet
	arrived   trace.Tuple
	left      time.Time // latest departure
	ttl       uint8     // of the latest arrival
	rounds    uint32    // how often the packet that came in last had been here before
	kinds     [2]string // of the devices in and out
}

// related reports whether a packet in direction d can belong to the path; tuple
// is its own in request direction. A request must be one that was seen, or be
// tied to one by conntrack, or be the same packet after a NAT, or be the same
// request behind a switch that translates in user space. A reply may also come
// from elsewhere than the request went to, or go elsewhere than it came from.
func (p *path) related(d trace.Direction, t trace.Tuple, ev *trace.Event) bool {
	samePacket := ev.SKB != 0 && ev.SKB == p.skb && ev.Time.Sub(p.last) < packetAge
	for _, known := range p.tuples {
		if known == t {
			return true
		}
		if (samePacket || d == trace.Reply) && (known.Src == t.Src || known.Dst == t.Dst) {
			return true
		}
		if d == trace.Request && known.Src == t.Src && p.wentOnFrom(ev.Netns) {
			return true
		}
		if c := ev.Conntrack; c.Known() && (c.Original == known || c.Reply.Reverse() == known ||
			c.Original.Reverse() == known || c.Reply == known) {
			return true
		}
	}
	return false
}

// wentOnFrom reports whether a request that is seen in a namespace can be the
// path's own, sent on with another destination as a new packet (Open vSwitch's
// userspace datapath does so): by number and sender it is the same. Where the
// path begins it is another, as scanners send them, with one number for all ports.
func (p *path) wentOnFrom(ns trace.Netns) bool {
	return len(p.request) > 0 && p.request[0].netns != ns
}

// packetAge is how long an skb's address means the same packet, at least while it stays on its way.
const packetAge = 10 * time.Millisecond

// addTuple keeps a tuple in request direction.
func (p *path) addTuple(t trace.Tuple) {
	for _, known := range p.tuples {
		if known == t {
			return
		}
	}
	if len(p.tuples) < maxTuples {
		p.tuples = append(p.tuples, t)
	}
}

func (p *path) hops(d trace.Direction) *[]hop {
	if d == trace.Reply {
		return &p.reply
	}
	return &p.request
}

// arrive notes that a packet came into a namespace, and returns the hop.
func (p *path) arrive(d trace.Direction, ev *trace.Event) *hop {
	hops := p.hops(d)
	h := findArrival(*hops, ev)
	if h == nil {
		if len(*hops) >= maxHops {
			return nil
		}
		*hops = append(*hops, hop{netns: ev.Netns, in: ev.Device, port: ev.Device.Index, first: ev.Time})
		h = &(*hops)[len(*hops)-1]
	}
	if h.in.Index == ev.Device.Index {
		h.kinds[0] = ev.Kind
	}
	if !h.comesAround(ev) {
		h.count++
	}
	h.arrived = ev.Tuple
	h.at, h.skb, h.mac, h.mark = ev.Time, ev.SKB, ev.SourceMAC, ev.Mark
	h.tuple = ev.Tuple
	h.otherHost = ev.OtherHost
	return h
}

// findArrival returns the hop that a packet comes through: the one with this
// device, or the one that the same packet has just entered by a device below
// (bridge port, VLAN parent).
func findArrival(hops []hop, ev *trace.Event) *hop {
	for i := range hops {
		if h := &hops[i]; h.netns == ev.Netns && h.in.Index != 0 && (h.in.Index == ev.Device.Index || h.port == ev.Device.Index) {
			return h
		}
	}
	if n := len(hops); n > 0 {
		if h := &hops[n-1]; h.netns == ev.Netns && h.in.Index != 0 && h.out.Index == 0 && h.skb == ev.SKB {
			h.in = ev.Device
			h.count-- // the same packet, counted at its port
			return h
		}
	}
	return nil
}

// depart notes that a packet leaves a namespace, and returns the hop.
func (p *path) depart(d trace.Direction, ev *trace.Event) *hop {
	hops := p.hops(d)
	h := findDeparture(*hops, ev)
	if h == nil {
		if len(*hops) >= maxHops {
			return nil
		}
		*hops = append(*hops, hop{netns: ev.Netns, first: ev.Time})
		h = &(*hops)[len(*hops)-1]
	}
	if h.in.Index == 0 {
		h.count++
		h.at = ev.Time
		h.mark = ev.Mark
		h.ttl = ev.TTL
	}
	h.left = ev.Time
	if h.out.Index == 0 {
		h.out, h.kinds[1] = ev.Device, ev.Kind
	}
	h.pending = false
	h.tuple = ev.Tuple
	return h
}

// findDeparture returns the hop that a leaving packet belongs to: where the same
// packet came in last, else the namespace's latest.
func findDeparture(hops []hop, ev *trace.Event) *hop {
	var latest, entered *hop
	for i := range hops {
		h := &hops[i]
		if h.netns != ev.Netns {
			continue
		}
		if h.skb == ev.SKB && h.in.Index != 0 && (entered == nil || h.at.After(entered.at)) {
			entered = h
		}
		if (latest == nil || h.at.After(latest.at)) && !h.onlyFlooded(ev) {
			latest = h
		}
	}
	if entered != nil {
		return entered
	}
	return latest
}

// onlyFlooded reports whether what came in was a copy for another host, which a
// switch flooded here, and what leaves was made here of a packet that has passed
// more routers since: it came some other way, through a tunnel made in user space.
func (h *hop) onlyFlooded(ev *trace.Event) bool {
	return h.otherHost && ev.InIndex == 0 && ev.TTL != 0 && ev.TTL+1 < h.ttl
}

// settle clears what waits in a namespace: it did something about the request.
func (p *path) settle(ns trace.Netns) {
	for i := range p.request {
		if p.request[i].netns == ns {
			p.request[i].pending = false
		}
	}
}

// lastArrival returns the hop of a namespace that a packet of this direction reached last.
func (p *path) lastArrival(d trace.Direction, ns trace.Netns) *hop {
	var last *hop
	for i, hops := 0, *p.hops(d); i < len(hops); i++ {
		if h := &hops[i]; h.netns == ns && h.in.Index != 0 && (last == nil || h.at.After(last.at)) {
			last = h
		}
	}
	return last
}

// isEnd reports whether the request went no further than h.
func (p *path) isEnd(h *hop) bool {
	for i := range p.request {
		if o := &p.request[i]; o != h && !o.otherHost && o.at.After(h.at) {
			return false
		}
	}
	return true
}

// arrival rebuilds the event with which a packet came into a hop.
func (p *path) arrival(d trace.Direction, h *hop) trace.Event {
	ev := trace.Event{
		Time: h.at, Hook: trace.HookReceive, Netns: h.netns, Device: h.in, Tuple: h.tuple, SKB: h.skb,
		SourceMAC: h.mac, Mark: h.mark, InIndex: h.in.Index,
	}
	if p.protocol == trace.UDP {
		return ev
	}
	ev.Flags, ev.Seq = trace.SYN, p.seq
	if d == trace.Reply {
		ev.Flags, ev.Seq, ev.Ack = trace.SYN|trace.ACK, 0, p.seq+1
	}
	return ev
}

// snapshot makes the path that diagnosis and people see.
func (p *path) snapshot(place func(trace.Netns, time.Time) trace.Place) trace.Path {
	seq := p.seq
	if p.adopted || p.protocol != trace.TCP {
		seq = 0
	}
	return trace.Path{
		Sequence: seq, Established: p.established,
		Protocol: p.protocol, Client: p.client, Server: p.server,
		Request: snapshotHops(p.request, place), Reply: snapshotHops(p.reply, place),
		First: p.first, Last: p.last, Requests: p.requests,
		Answered: p.answered, Reset: p.reset, Process: p.process, Guessed: p.guessed,
		Connection: trace.Tuple{Protocol: p.protocol, Src: p.client, Dst: p.server},
	}
}

func snapshotHops(hops []hop, place func(trace.Netns, time.Time) trace.Place) []trace.Hop {
	out := make([]trace.Hop, 0, len(hops))
	for i := range hops {
		h := &hops[i]
		if h.otherHost && h.out.Index == 0 {
			continue // flooded here, and not for this host
		}
		out = append(out, trace.Hop{
			Place: place(h.netns, h.first), In: h.in, Out: h.out, Tuple: h.tuple, First: h.first, Count: h.count,
			Arrived: h.arrived, Rounds: h.rounds, Mark: h.mark, Bridged: h.otherHost, TTL: h.ttl,
			InTunnel: tunnelKind(h.kinds[0]), OutTunnel: tunnelKind(h.kinds[1]),
		})
	}
	return out
}

// tunnelKind returns the kind of a device if it is a tunnel.
func tunnelKind(kind string) string {
	if trace.IsTunnel(kind) {
		return kind
	}
	return ""
}
