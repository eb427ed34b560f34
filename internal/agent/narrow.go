package agent

import (
	"github.com/replypath/replypath/internal/netstate"
	"github.com/replypath/replypath/pkg/trace"
	"github.com/replypath/replypath/pkg/trace/diagnose"
)

// narrow finds the device that the case's packet was too big for: the one that it
// was handed to, or the other end of its cable.
func (i *investigator) narrow(c *trace.Case) trace.Narrow {
	t, err := i.reader.Topology(c.Place.Netns)
	if err != nil {
		return trace.Narrow{}
	}
	near := t.Links[netstate.Port{Netns: c.Place.Netns, Index: c.Event.Device.Index}]
	if near == nil {
		return trace.Narrow{}
	}
	found := trace.Narrow{Place: c.Place, Device: trace.Device{Index: near.Index, Name: near.Name}, Kind: near.Kind, MTU: near.MTU}
	far := t.Links[near.Lower]
	if near.Kind != "veth" || far == nil || diagnose.TooBigFor(near.MTU, c.Event.Length) {
		return found
	}
	return trace.Narrow{
		Place: i.places.Place(far.Netns), Device: trace.Device{Index: far.Index, Name: far.Name}, Kind: far.Kind, MTU: far.MTU,
		Sender: found.Device, SenderPlace: c.Place, SenderMTU: near.MTU,
	}
}
