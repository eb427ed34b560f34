package check

import (
	"fmt"

	"github.com/replypath/replypath/pkg/trace"
)

// after follows what comes after the first two packets of an exchange, where
// these find their way: the third of TCP's handshake and the server's data, and of
// datagrams that are big the fragments.
func (r *run) after() {
	request := r.answer.Path.Connection
	if len(r.answer.Findings) > 0 {
		return
	}
	r.tooBig()
	if len(r.answer.Findings) > 0 {
		return
	}
	switch request.Protocol {
	case trace.TCP:
		r.walk(packet{tuple: request, flags: trace.ACK, direction: trace.Request, again: true}, position{netns: r.clientAt})
		if len(r.answer.Findings) == 0 {
			r.dataBack()
		}
	case trace.UDP:
		defer func(was trace.Confidence) { r.most = was }(r.most)
		r.most = trace.Possible // if datagrams are that big at all
		end := r.walk(packet{tuple: request, direction: trace.Request, later: true, again: true}, position{netns: r.clientAt})
		if end.kind != lost {
			r.walk(packet{tuple: r.reply.tuple, direction: trace.Reply, later: true}, r.replyFrom)
		}
	}
}

// dataBack follows the server's data. A router that saw no request lets the SYN-ACK pass
// untranslated, and takes what follows for a connection's first packet (nf_conntrack_tcp_loose).
func (r *run) dataBack() {
	defer func(was trace.Confidence) { r.most = was }(r.most)
	r.most = trace.Likely // it hangs on what connection tracking takes for a connection's beginning
	handshake := r.answer.Path.Reply
	r.answer.Path.Reply = nil
	data := r.reply
	data.flags, data.data = trace.PSH|trace.ACK, true
	end := r.walk(data, r.replyFrom)
	if end.kind == arrived && end.packet.tuple != r.awaited() {
		r.misaddressed(&end)
	}
	if len(r.answer.Findings) == 0 {
		r.answer.Path.Reply = handshake
	}
}

// misaddressed tells of a reply that reaches the client with other addresses
// than it waits for.
func (r *run) misaddressed(end *ending) {
	place := r.places.Place(end.at.netns)
	ev := trace.Event{Time: r.now, Hook: trace.HookReceive, Netns: end.at.netns, Tuple: end.packet.tuple, Flags: end.packet.flags, InIndex: end.at.in}
	c := trace.Case{Symptom: trace.SymptomMisaddressed, Direction: trace.Reply, Place: place, Event: ev, Arrival: ev}
	text := fmt.Sprintf("the reply would reach %s as %s, and the client waits for one from %s", r.name(place), end.packet.tuple, r.q.Server)
	r.explainOr(&c, &trace.HostState{ReadAt: r.now}, text)
}
