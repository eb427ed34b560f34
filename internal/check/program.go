package check

import (
	"net"

	"github.com/replypath/replypath/internal/classifier"
	"github.com/replypath/replypath/internal/netstate"
	"github.com/replypath/replypath/pkg/trace"
)

// side is where the programs of a device see packets, and what the kernel says
// when one drops.
type side struct {
	reason string
	points []trace.AttachPoint
}

var (
	sidesIn = []side{
		{"XDP", []trace.AttachPoint{trace.XDPNative, trace.XDPGeneric}},
		{"TC_INGRESS", []trace.AttachPoint{trace.TCXIngress, trace.TCIngress}},
	}
	sidesOut = []side{{"TC_EGRESS", []trace.AttachPoint{trace.TCXEgress, trace.TCEgress}}}
)

// passes takes the packet past the programs and filters of a device and of those below it.
func (s *step) passes(index uint32, sides []side) endKind {
	if index == 0 || s.packet.later || s.packet.icmp != [2]uint8{} {
		return goesOn
	}
	for _, l := range s.stack(index) {
		for _, at := range sides {
			if kind := s.passesAt(l, at); kind != goesOn {
				return kind
			}
		}
	}
	return goesOn
}

// stack is a device and those below it in the same namespace.
func (s *step) stack(index uint32) []*netstate.Link {
	var all []*netstate.Link
	for l := s.topology.Links[netstate.Port{Netns: s.at.netns, Index: index}]; l != nil && !l.Loopback && len(all) < maxStack; {
		all = append(all, l)
		if l.Lower.Netns != s.at.netns || l.Kind == "veth" {
			break
		}
		l = s.topology.Links[l.Lower]
	}
	return all
}

// maxStack bounds devices upon devices.
const maxStack = 8

// passesAt takes the packet past those of one side of one device.
func (s *step) passesAt(l *netstate.Link, at side) endKind {
	found, err := s.reader.Classifiers(s.ctx, s.place, l.Index, at.points...)
	if err != nil {
		s.run.unread("%s: programs and filters of %s: %v", s.run.name(s.place), l.Name, err)
	}
	if len(found) == 0 {
		return goesOn
	}
	var j classifier.Judgement
	err = s.Inside(s.ctx, s.place, func() error {
		j = classifier.Judge(found, s.seen(l, at), l.Index, s.runAll)
		return nil
	})
	if j.Ran {
		s.run.sent("ran the programs at %s of %s on a copy of the %s", l.Name, s.run.name(s.place), kindOf(s.packet))
	}
	switch {
	case err != nil || j.Verdict == classifier.Unknown:
		s.run.unread("%s: %s of %s sees the %s and may drop it: what it does is not judged", s.run.name(s.place), j.By, l.Name, kindOf(s.packet))
	case j.Verdict == classifier.Drop:
		c := s.lost(trace.SymptomDrop, at.reason)
		c.Event.Device = trace.Device{Index: l.Index, Name: l.Name}
		if at.reason == "TC_EGRESS" {
			c.Event.OutIndex = l.Index
		} else {
			c.Event.InIndex = l.Index
		}
		s.explain(&c, &s.state)
		return lost
	}
	return goesOn
}

// seen is the packet as the programs of a device see it.
func (s *step) seen(l *netstate.Link, at side) *classifier.Packet {
	p := &classifier.Packet{Tuple: s.packet.tuple, Flags: s.packet.flags, Mark: s.packet.mark}
	mac, _ := net.ParseMAC(l.MAC)
	if at.reason == "TC_EGRESS" {
		p.Src = mac
	} else {
		p.Dst, p.Mark = mac, 0
	}
	return p
}

// sent tells of what was done to find out: --probe allows it.
func (r *run) sent(format string, args ...any) { r.note("probe: "+format, args...) }
