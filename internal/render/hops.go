package render

import (
	"fmt"
	"slices"
	"strings"

	tracev1 "github.com/replypath/replypath/api/trace/v1"
)

// A way is one direction of a path as it is drawn: namespaces in brackets, and
// beside them the devices that the packet left and came in by.
//
//	[client] eth0 -> lan0 [router] net0 -> eth0 [backend]
type way struct {
	hops     []*tracev1.Hop
	src, dst string // what the first hop should carry; a difference is NAT
	origin   string // who sent it, if that was not seen
	trim     string // Text.Trim
	nodes    bool   // the path goes over several: their names are told
}

func (t Text) requestWay(p *tracev1.Path) way {
	return way{hops: p.GetRequest(), src: p.GetClient(), dst: p.GetServer(), origin: host(p.GetClient()), trim: t.Trim, nodes: severalNodes(p)}
}

func (t Text) replyWay(p *tracev1.Path) way {
	w := way{hops: p.GetReply(), src: p.GetServer(), dst: p.GetClient(), origin: host(p.GetServer()), trim: t.Trim, nodes: severalNodes(p)}
	if n := len(p.GetRequest()); n > 0 {
		last := p.GetRequest()[n-1]
		w.src, w.dst = last.GetDestination(), last.GetSource()
	}
	return w
}

// draw returns one word for each hop. The hop at stop, if there is one, has
// words of its own after it, which say why the packet got no further.
func (w way) draw(stop int, mark []word) []word {
	var ws []word
	if len(w.hops) > 0 && w.hops[0].GetInDevice() != "" {
		ws = append(ws, unbroken(plain, w.origin))
	}
	src, dst := w.src, w.dst
	for i, h := range w.hops {
		arrow := len(ws) > 0
		if i == stop+1 && stop >= 0 {
			ws = append(ws, words(dim, "(and went on)")...)
		}
		// Made where the one before ended: another connection, of whoever took that.
		onward := i > 0 && h.GetNetnsInode() != 0 && h.GetNetnsInode() == w.hops[i-1].GetNetnsInode()
		ws = append(ws, w.hopWord(h, arrow, onward))
		if kind := h.GetOutTunnel(); kind != "" {
			ws = append(ws, unbroken(dim, "("+kind+")"))
		}
		ws = append(ws, translation(src, dst, h)...)
		src, dst = or(h.GetSource(), src), or(h.GetDestination(), dst)
		if i == stop {
			ws = append(ws, mark...)
		}
	}
	return ws
}

func (w way) hopWord(h *tracev1.Hop, arrow, onward bool) word {
	var drawn word
	if arrow {
		drawn = append(drawn, styled(dim, "-> "))
	}
	switch {
	case h.GetInDevice() != "":
		drawn = append(drawn, styled(plain, h.GetInDevice()+" "))
	case arrow && onward:
		drawn = append(drawn, styled(dim, "(proxy) "))
	case arrow: // it came in by no device: in a tunnel that was not seen, as a switch in user space has them
		drawn = append(drawn, styled(dim, "(tunnel) -> "))
	}
	drawn = append(drawn, styled(bold, w.hopBox(h)))
	if h.GetOutDevice() != "" {
		drawn = append(drawn, styled(plain, " "+h.GetOutDevice()))
	}
	return drawn
}

// translation says what NAT on a hop's host changed.
func translation(src, dst string, h *tracev1.Hop) []word {
	var ws []word
	if s := h.GetSource(); s != "" && src != "" && s != src {
		ws = append(ws, unbroken(dim, "{from "+s+"}"))
	}
	if d := h.GetDestination(); d != "" && dst != "" && d != dst {
		ws = append(ws, unbroken(dim, "{to "+d+"}"))
	}
	return ws
}

// hopBox is a hop's namespace, with its node where there are several.
func (w way) hopBox(h *tracev1.Hop) string {
	name := placeName(strings.TrimPrefix(h.GetNetns(), w.trim), h.GetNetnsInode(), h.GetWorkload())
	if w.nodes {
		name = onNode(h.GetNode(), name)
	}
	return "[" + name + "]"
}

func onNode(node, name string) string { return or(node, "?") + ": " + name }

// severalNodes reports whether a path's hops are of more than one node.
func severalNodes(p *tracev1.Path) bool {
	nodes := make(map[string]bool)
	for _, h := range slices.Concat(p.GetRequest(), p.GetReply()) {
		nodes[h.GetNode()] = true
	}
	return len(nodes) > 1
}

// placeName names a namespace as its operator does: the workload in it, its
// name under /run/netns, or its inode number.
func placeName(netns string, inode uint32, workload string) string {
	switch {
	case workload != "":
		return workload
	case netns != "":
		return netns
	case inode != 0:
		return fmt.Sprintf("netns %d", inode)
	}
	return "?"
}

// hopAt returns the index of the last hop in the namespace where the fault is, or -1.
func hopAt(hops []*tracev1.Hop, at *tracev1.Where) int {
	for i, h := range slices.Backward(hops) {
		if at.GetNode() != "" && h.GetNode() != "" && at.GetNode() != h.GetNode() {
			continue // each node has its own numbers
		}
		if at.GetNetnsInode() != 0 && h.GetNetnsInode() != 0 {
			if at.GetNetnsInode() == h.GetNetnsInode() {
				return i
			}
		} else if at.GetNetns() != "" && at.GetNetns() == h.GetNetns() {
			return i
		}
	}
	return -1
}

func or(s, otherwise string) string {
	if s != "" {
		return s
	}
	return otherwise
}
