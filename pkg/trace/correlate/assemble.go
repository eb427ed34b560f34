package correlate

import (
	"slices"

	"github.com/replypath/replypath/pkg/trace"
)

// assemble makes one path of the parts that nodes saw of it. What only the
// client's side can tell (what it meant, when, whether it was answered) the node
// tells that saw the request first.
func assemble(parts []*trace.Path) trace.Path {
	if len(parts) == 1 {
		return *parts[0]
	}
	request := func(p *trace.Path) []trace.Hop { return p.Request }
	reply := func(p *trace.Path) []trace.Hop { return p.Reply }
	hops := interleave(parts, request)
	origin := parts[0]
	for _, p := range parts {
		if len(hops) > 0 && len(p.Request) > 0 && isSameHop(&p.Request[0], &hops[0]) {
			origin = p
			break
		}
	}
	whole := *origin
	whole.Request, whole.Reply = hops, interleave(parts, reply)
	for _, p := range parts {
		whole.Reset = whole.Reset || p.Reset
		whole.Established = whole.Established || p.Established
		whole.Guessed = whole.Guessed && p.Guessed
		if whole.Process.PID == 0 {
			whole.Process = p.Process
		}
		if whole.Sequence == 0 {
			whole.Sequence = p.Sequence
		}
	}
	whole.Answered = whole.Answered || whole.Established
	return whole
}

// isSameHop reports whether two parts tell of the same hop: one agent may be asked
// twice, and a UDP client may pause.
func isSameHop(a, b *trace.Hop) bool {
	return a.Place.Node == b.Place.Node && a.Place.Netns == b.Place.Netns && a.In == b.In
}

// interleave puts the hops of one direction in the order of the way. Each node
// knows the order of its own. Between nodes it is told by the hops that a packet has left to
// live: each router takes one, and tunnels carry the number through.
func interleave(parts []*trace.Path, of func(*trace.Path) []trace.Hop) []trace.Hop {
	var nodes [][]trace.Hop
	for _, p := range parts {
		nodes = addHops(nodes, of(p))
	}
	var way []trace.Hop
	for {
		next := -1
		for i := range nodes {
			if len(nodes[i]) > 0 && (next < 0 || precedes(nodes[i], nodes[next], way)) {
				next = i
			}
		}
		if next < 0 {
			return way
		}
		way = append(way, nodes[next][0])
		nodes[next] = nodes[next][1:]
	}
}

// addHops adds the hops of a part to those of its node. A node that saw an
// exchange before and after a translation elsewhere may have taken it for two.
func addHops(nodes [][]trace.Hop, hops []trace.Hop) [][]trace.Hop {
	if len(hops) == 0 {
		return nodes
	}
	n := slices.IndexFunc(nodes, func(known []trace.Hop) bool { return known[0].Place.Node == hops[0].Place.Node })
	if n < 0 {
		return append(nodes, slices.Clone(hops))
	}
	for i := range hops {
		k := slices.IndexFunc(nodes[n], func(h trace.Hop) bool { return isSameHop(&h, &hops[i]) })
		switch {
		case k < 0:
			nodes[n] = append(nodes[n], hops[i])
		case !nodes[n][k].First.Equal(hops[i].First): // the same one, told twice, counts once
			nodes[n][k].Count += hops[i].Count
		}
	}
	slices.SortStableFunc(nodes[n], func(a, b trace.Hop) int { return a.First.Compare(b.First) }) // by one clock
	return nodes
}

// precedes reports whether the rest of one node's hops comes before another's.
func precedes(a, b, way []trace.Hop) bool {
	x, y := &a[0], &b[0]
	if rx, ry := remaining(x), remaining(y); rx != ry {
		return rx > ry
	}
	if len(way) == 0 { // who sends it on is before who keeps it
		return isSentOn(a) && !isSentOn(b)
	}
	last := &way[len(way)-1]
	if last.Place.Node == x.Place.Node || last.Place.Node == y.Place.Node {
		return last.Place.Node == x.Place.Node // between bridges: first to the end of the node
	}
	return x.Arrived == last.Tuple && y.Arrived != last.Tuple
}

// remaining orders hops by what a packet has left to live. It leaves the host that
// made it with as much as it comes to the next one, and bridges take nothing: they
// are before the host that it is addressed to.
func remaining(h *trace.Hop) int {
	r := 3 * int(h.TTL)
	switch {
	case wasMade(h):
		return r + 2
	case h.Bridged:
		return r + 1
	}
	return r
}

// wasMade reports a hop that the packet came into by no device.
func wasMade(h *trace.Hop) bool { return h.In == trace.Device{} }

// isSentOn reports whether the last of some hops sent the packet on.
func isSentOn(hops []trace.Hop) bool { return hops[len(hops)-1].Out != trace.Device{} }
