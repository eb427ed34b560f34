package agent

import (
	"context"
	"net/netip"

	"github.com/replypath/replypath/internal/netfilter"
	"github.com/replypath/replypath/internal/netstate"
	"github.com/replypath/replypath/pkg/trace"
	"github.com/replypath/replypath/pkg/trace/diagnose"
)

// circle asks the hosts of a circle where each sends the packet.
func (i *investigator) circle(ctx context.Context, c *trace.Case) []trace.Turn {
	dst := c.Event.Tuple.Dst.Addr()
	var owners [][]netstate.Address
	for _, o := range i.owners(dst, c.Place.Netns) {
		if theirs, err := i.reader.Addresses(o.Place.Netns); err == nil {
			owners = append(owners, theirs)
		}
	}
	var turns []trace.Turn
	hops := diagnose.Circle(c)
	for n := range hops {
		h := &hops[n]
		packet := h.Arrived
		if !packet.IsValid() {
			packet = h.Tuple
		}
		s, err := i.read(ctx, trace.Question{Place: h.Place, Packet: packet, In: h.In.Index, Mark: h.Mark})
		if err != nil {
			continue
		}
		turn := trace.Turn{Place: h.Place, In: h.In, Way: s.Onward}
		if own, err := i.reader.Addresses(h.Place.Netns); err == nil {
			turn.Near, turn.Link = near(own, dst, owners)
		}
		turns = append(turns, turn)
	}
	return turns
}

// near returns the way to a destination from a host that has it, or its owner, on a
// link; of the destination's own link also what it is the link of.
func near(own []netstate.Address, dst netip.Addr, owners [][]netstate.Address) (trace.Gateway, netip.Prefix) {
	for _, o := range own {
		if o.Up && !o.Virtual && !o.Prefix.IsSingleIP() && o.Prefix.Addr() != dst && o.Prefix.Masked().Contains(dst) {
			return trace.Gateway{Addr: dst, Device: o.Device}, o.Prefix.Masked()
		}
	}
	for _, theirs := range owners {
		if gateways := onLink(own, theirs, dst.Is6()); len(gateways) > 0 {
			return gateways[0], netip.Prefix{}
		}
	}
	return trace.Gateway{}, netip.Prefix{}
}

// contest finds out who claims the case's destination on the link that its packet came by.
func (i *investigator) contest(ctx context.Context, c *trace.Case, s *trace.HostState) trace.Contest {
	dst := c.Event.Tuple.Dst.Addr()
	owners := i.owners(dst, c.Place.Netns)
	if len(owners) == 0 {
		return trace.Contest{}
	}
	mine, err := i.reader.Addresses(c.Place.Netns)
	if err != nil {
		return trace.Contest{}
	}
	device := s.In
	if device.Index == 0 {
		device.Device = holding(mine, dst)
	}
	own, ok := claim(mine, dst, device)
	if !ok {
		return trace.Contest{}
	}
	own.Place = c.Place
	contest := trace.Contest{Own: own}
	var asked bool
	contest.Sender, contest.Believes, asked = i.sender(ctx, c)
	if asked && contest.Believes == "" {
		return trace.Contest{} // it was sent here by a route, not by who answered for the address
	}
	for _, o := range owners {
		theirs, err := i.reader.Addresses(o.Place.Netns)
		if err != nil || o.Place.Netns == contest.Sender.Netns {
			continue
		}
		for _, link := range theirs {
			if link.Virtual || !shares(mine, link, own.Device) {
				continue
			}
			answer, err := i.read(ctx, trace.Question{Place: o.Place, Packet: c.Event.Tuple, In: link.Device.Index})
			if err != nil {
				break
			}
			other, ok := claim(theirs, dst, answer.In)
			if !ok {
				continue
			}
			other.Place = o.Place
			for n := range answer.Listeners {
				other.Listens = other.Listens || answer.Listeners[n].Matches
			}
			contest.Others = append(contest.Others, other)
			break
		}
	}
	return contest
}

// sender asks the host that sent the request to the case's host whose MAC it has
// for the destination. Not asked: it is not known, or not on this node.
func (i *investigator) sender(ctx context.Context, c *trace.Case) (place trace.Place, mac string, asked bool) {
	from := before(c)
	if from == nil || c.Symptom == trace.SymptomUnmatched {
		return trace.Place{}, "", false
	}
	s, err := i.read(ctx, trace.Question{Place: from.Place, Packet: from.Tuple, Out: from.Out.Index, NextHop: from.Tuple.Dst.Addr()})
	if err != nil {
		return trace.Place{}, "", false
	}
	return from.Place, s.NextHop.MAC, true
}

// belief finds out who, of the namespaces linked to one, has the address of its
// neighbour entry, and who the MAC.
func (i *investigator) belief(entry trace.Neighbor, near trace.Netns) (b trace.Belief) {
	linked, err := i.reader.Neighborhood(near)
	if err != nil {
		return b
	}
	for _, ns := range linked {
		macs, err := i.reader.MACs(ns)
		if err != nil {
			return trace.Belief{} // it may be the one
		}
		if device, ok := macs[entry.MAC]; ok {
			b.Takers = append(b.Takers, trace.Claim{Place: i.places.Place(ns), Device: device, MAC: entry.MAC})
		}
		addrs, err := i.reader.Addresses(ns)
		if err != nil {
			continue
		}
		for _, have := range addrs {
			if have.Prefix.Addr() == entry.Addr && have.Up && !have.Virtual && have.MAC != "" {
				b.Holders = append(b.Holders, trace.Claim{Place: i.places.Place(ns), Device: have.Device, MAC: have.MAC, Holder: have.Device, Prefix: have.Prefix})
			}
		}
	}
	return b
}

// natRules reads which rules of a namespace translate addresses.
func (i *investigator) natRules(ctx context.Context, c *trace.Case, q trace.Question) (found trace.NATRules) {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	err := i.reader.Inside(ctx, q.Place, func() (err error) {
		found, err = netfilter.NATChains(q)
		if answer, hooks := diagnose.AnswerQuestion(c, q); err == nil && len(hooks) > 0 {
			found.By, err = changers(answer, hooks)
		}
		return err
	})
	if err != nil {
		i.log.Debug("cannot read rules that translate", "netns", q.Place.Netns, "err", err)
		return trace.NATRules{}
	}
	return found
}

// changers are the rules that change the packet, at the first hook at which any does.
func changers(q trace.Question, hooks []trace.NetfilterHook) ([]trace.FilterVerdict, error) {
	for _, hook := range hooks {
		change, err := netfilter.Changes(q, trace.Interface{}, trace.Interface{}, hook)
		if err != nil || len(change.By) > 0 {
			return change.By, err
		}
	}
	return nil, nil
}

// before returns the hop from which the request came to the case's host, past bridges; nil: not known.
func before(c *trace.Case) (from *trace.Hop) {
	for n := range c.Path.Request {
		h := &c.Path.Request[n]
		if h.Place.Netns == c.Place.Netns {
			break
		}
		if !h.Bridged && h.Out.Index != 0 {
			from = h
		}
	}
	return from
}

// sent asks the host that sent the request to the case's host for the route by which it did.
func (i *investigator) sent(ctx context.Context, c *trace.Case) trace.Lookup {
	from := before(c)
	if from == nil {
		return trace.Lookup{}
	}
	s, err := i.read(ctx, trace.Question{Place: from.Place, Packet: from.Tuple, In: from.In.Index, Mark: from.Mark})
	if err != nil {
		return trace.Lookup{}
	}
	return s.Onward
}

// holding returns the device that has an address.
func holding(addrs []netstate.Address, a netip.Addr) trace.Device {
	for _, have := range addrs {
		if have.Prefix.Addr() == a {
			return have.Device
		}
	}
	return trace.Device{}
}

// claim returns how a host claims an address on the link of one of its devices:
// it has it there, or (IPv4, unless arp_ignore forbids) elsewhere.
func claim(addrs []netstate.Address, a netip.Addr, on trace.Interface) (trace.Claim, bool) {
	held, found := false, trace.Claim{Device: on.Device}
	for _, have := range addrs {
		if have.Device.Index == on.Index {
			found.MAC = have.MAC
			held = held || have.Prefix.Addr() == a
		}
		if have.Prefix.Addr() == a && (!found.Prefix.IsValid() || have.Device.Index == on.Index) {
			found.Holder, found.Prefix = have.Device, have.Prefix
		}
	}
	if held {
		return found, true
	}
	return found, a.Is4() && on.ARPIgnore == 0 && found.MAC != ""
}

// shares reports whether another host's address is on the link of one of our devices.
func shares(own []netstate.Address, other netstate.Address, device trace.Device) bool {
	for _, o := range own {
		if o.Device.Index == device.Index && !o.Prefix.IsSingleIP() && !o.Prefix.Addr().IsLinkLocalUnicast() &&
			o.Prefix.Masked() == other.Prefix.Masked() {
			return true
		}
	}
	return false
}
