package correlate

import "github.com/replypath/replypath/pkg/trace"

// maxSYNData is more than a SYN carries with TCP Fast Open (RFC 7413): one packet's worth.
const maxSYNData = 1 << 16

// isAcked reports whether an answer acknowledges the path's SYN, and perhaps data that came with it.
func (p *path) isAcked(ev *trace.Event) bool { return ev.Ack-1-p.seq < maxSYNData }

// findAnswered returns the path whose SYN an answer acknowledges; tuple is the
// answer's, in request direction. With Fast Open the acknowledgement counts the
// SYN's data too: the host that answers knows the SYN by its tuple, and whoever
// sees the answer after it by what that acknowledges.
func (t *Table) findAnswered(tuple trace.Tuple, ev *trace.Event) *path {
	if p := t.findSeq(ev.Ack-1, trace.Reply, tuple, ev); p != nil {
		return p
	}
	if p := t.opened[ev.Ack-1]; p != nil && p.related(trace.Reply, tuple, ev) {
		return p
	}
	p := t.tuples[tupleKey{ev.Netns, tuple}]
	if p == nil || p.adopted || p.protocol != trace.TCP || !p.isAcked(ev) {
		return nil
	}
	t.forgetOpened(p)
	p.opens = ev.Ack - 1
	t.opened[p.opens] = p
	return p
}

// forgetOpened removes what findAnswered added.
func (t *Table) forgetOpened(p *path) {
	if t.opened[p.opens] == p {
		delete(t.opened, p.opens)
	}
}
