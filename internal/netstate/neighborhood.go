package netstate

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/replypath/replypath/pkg/trace"
)

// maxNeighborhood bounds how many namespaces are looked at.
const maxNeighborhood = 256

// Neighborhood returns the namespaces that can be reached from one over links
// between namespaces (veth and the like), itself not among them: others may have
// the same addresses, and nothing to do with it. The list may lack some that
// have no name.
func (r *Reader) Neighborhood(from trace.Netns) ([]trace.Netns, error) {
	open := make(map[trace.Netns]netns.NsHandle)
	defer func() {
		for _, h := range open {
			h.Close()
		}
	}()
	for _, ns := range append(r.dir.Reachable(maxNeighborhood), from) {
		if _, ok := open[ns]; ok {
			continue
		}
		if h, err := r.dir.Open(ns); err == nil {
			open[ns] = h
		}
	}
	if _, ok := open[from]; !ok {
		return nil, fmt.Errorf("look around namespace %d: %w", from, ErrNoNamespace)
	}
	seen := map[trace.Netns]bool{from: true}
	var found []trace.Netns
	for queue := []trace.Netns{from}; len(queue) > 0; queue = queue[1:] {
		peers, err := linkedTo(queue[0], open)
		if err != nil {
			continue // it may be gone by now
		}
		for _, ns := range peers {
			if !seen[ns] {
				seen[ns] = true
				found = append(found, ns)
				queue = append(queue, ns)
			}
		}
	}
	return found, nil
}

// linkedTo returns those of the open namespaces that a link of ns leads to.
func linkedTo(ns trace.Netns, open map[trace.Netns]netns.NsHandle) ([]trace.Netns, error) {
	h, err := netlink.NewHandleAt(open[ns], unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	defer h.Close()
	if err := h.SetSocketTimeout(addressTimeout); err != nil {
		return nil, err
	}
	links, err := h.LinkList()
	if err != nil {
		return nil, err
	}
	ids := make(map[int]bool)
	for _, l := range links {
		if id := l.Attrs().NetNsID; id >= 0 {
			ids[id] = true
		}
	}
	if len(ids) == 0 {
		return nil, nil
	}
	var peers []trace.Netns
	for _, other := range byDistance(ns, open) {
		if len(ids) == 0 {
			break // there may be many more, none of which is linked to
		}
		if id, err := h.GetNetNsIdByFd(int(open[other])); err == nil && ids[id] {
			peers = append(peers, other)
			delete(ids, id)
		}
	}
	return peers, nil
}

// byDistance returns the others, first those that are probably linked: namespaces
// that were made together have inodes near each other.
func byDistance(ns trace.Netns, open map[trace.Netns]netns.NsHandle) []trace.Netns {
	distance := func(other trace.Netns) trace.Netns { return max(ns, other) - min(ns, other) }
	others := slices.DeleteFunc(slices.Collect(maps.Keys(open)), func(other trace.Netns) bool { return other == ns })
	slices.SortFunc(others, func(a, b trace.Netns) int { return cmp.Compare(distance(a), distance(b)) })
	return others
}
