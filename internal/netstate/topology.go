package netstate

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/replypath/replypath/pkg/trace"
)

// Port is a device of a namespace.
type Port struct {
	Netns trace.Netns
	Index uint32
}

// Link is a device as the topology of a node's namespaces needs it.
type Link struct {
	Port
	Name      string
	Kind      string // as ip-link(8) says: "veth", "bridge"; "" or "device" for a physical one
	Up        bool   // and has a carrier
	Loopback  bool
	MTU       int
	MAC       string
	Master    uint32 // bridge, bond or VRF that it belongs to; 0: none
	Lower     Port   // veth: its peer; VLAN, macvlan and the like: the device below; zero: none, or not known
	VLAN      int    // tag of a VLAN device
	VNI       int    // of a VXLAN or Geneve device; of GRE its key
	Port4     int    // UDP port of a VXLAN device
	External  bool   // whoever sends chooses VNI and addresses
	Local     netip.Addr
	Remote    netip.Addr
	Addresses []netip.Prefix
	Bridging  Bridging
	// ARPIgnore and ARPAnnounce are the sysctls in effect; ProxyARP says that it
	// answers for others, in ARP or in ND.
	ARPIgnore, ARPAnnounce int
	ProxyARP               bool
	// Tapped: it takes frames for others, and is in no bridge: a program may switch them (Open vSwitch's userspace datapath).
	Tapped bool
}

// Topology is what links the namespaces of this node that can be reached from one.
type Topology struct {
	Links map[Port]*Link
	// Order lists the namespaces, the one that was asked for first.
	Order  []trace.Netns
	Unread []string
}

// Of returns the links of a namespace, in order of their index.
func (t *Topology) Of(ns trace.Netns) []*Link {
	var all []*Link
	for _, l := range t.Links {
		if l.Netns == ns {
			all = append(all, l)
		}
	}
	slices.SortFunc(all, func(a, b *Link) int { return int(a.Index) - int(b.Index) })
	return all
}

// Topology reads the devices of a namespace and of all that it is linked to.
func (r *Reader) Topology(from trace.Netns) (*Topology, error) {
	t := &Topology{Links: make(map[Port]*Link)}
	linked, err := r.Neighborhood(from)
	if err != nil {
		if from != r.inode {
			return nil, err
		}
		linked = nil // without privilege its own devices can be read all the same
		t.Unread = append(t.Unread, err.Error())
	}
	t.Order = append([]trace.Netns{from}, linked...)
	handles := make(map[trace.Netns]netns.NsHandle)
	defer func() {
		for _, h := range handles {
			h.Close()
		}
	}()
	for _, ns := range t.Order {
		h, err := r.dir.Open(ns)
		if err != nil {
			t.Unread = append(t.Unread, err.Error())
			continue
		}
		handles[ns] = h
	}
	for ns, h := range handles {
		if err := r.inside(ns, h, func() error { return t.read(ns, handles) }); err != nil {
			t.Unread = append(t.Unread, fmt.Sprintf("devices of namespace %d: %v", ns, err))
		}
	}
	return t, nil
}

// Inside runs work on a thread in a namespace that is known. work must not
// change the thread's namespace.
func (r *Reader) Inside(ctx context.Context, place trace.Place, work func() error) error {
	if r.ownErr != nil {
		return r.ownErr
	}
	target, err := r.open(place)
	if err != nil {
		return fmt.Errorf("enter namespace %d: %w", place.Netns, err)
	}
	defer target.Close()
	if err := ctx.Err(); err != nil {
		return err
	}
	return r.inside(place.Netns, target, work)
}

func (r *Reader) inside(ns trace.Netns, target netns.NsHandle, work func() error) error {
	if r.ownErr != nil {
		return r.ownErr
	}
	if ns == r.inode {
		return work()
	}
	done := make(chan error, 1)
	var failed error
	enter(r.own, target, func() { failed = work() }, func(err error) {
		if err == nil {
			err = failed
		}
		done <- err
	})
	return <-done
}

// read adds the devices of the calling thread's namespace.
func (t *Topology) read(ns trace.Netns, handles map[trace.Netns]netns.NsHandle) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	if err := h.SetSocketTimeout(addressTimeout); err != nil {
		return err
	}
	links, err := h.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return fmt.Errorf("list devices: %w", err)
	}
	peers := make(map[int]trace.Netns)
	for other, handle := range handles {
		if id, err := h.GetNetNsIdByFd(int(handle)); err == nil && id >= 0 && other != ns {
			peers[id] = other
		}
	}
	for _, l := range links {
		found := newLink(ns, l, peers)
		t.Links[found.Port] = found
	}
	if err := t.readBridging(ns, h, links); err != nil {
		t.Unread = append(t.Unread, fmt.Sprintf("bridge ports of namespace %d: %v", ns, err))
	}
	addrs, err := h.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		ip, ok := netip.AddrFromSlice(a.IP)
		l := t.Links[Port{ns, uint32(a.LinkIndex)}]
		if !ok || l == nil || a.Flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) == unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED {
			continue
		}
		ones, _ := a.Mask.Size()
		l.Addresses = append(l.Addresses, netip.PrefixFrom(ip.Unmap(), ones))
	}
	return nil
}

// newLink translates a device; peers are the namespaces by their id in this one.
func newLink(ns trace.Netns, l netlink.Link, peers map[int]trace.Netns) *Link {
	a := l.Attrs()
	found := &Link{
		Port: Port{ns, uint32(a.Index)}, Name: a.Name, Kind: l.Type(), MTU: a.MTU, MAC: a.HardwareAddr.String(),
		Up:       a.RawFlags&unix.IFF_UP != 0 && a.RawFlags&unix.IFF_LOWER_UP != 0,
		Loopback: a.RawFlags&unix.IFF_LOOPBACK != 0, Master: uint32(a.MasterIndex),
	}
	if a.ParentIndex > 0 {
		switch other, known := peers[a.NetNsID]; {
		case a.NetNsID < 0:
			found.Lower = Port{ns, uint32(a.ParentIndex)}
		case known:
			found.Lower = Port{other, uint32(a.ParentIndex)}
		}
	}
	switch d := l.(type) {
	case *netlink.Vlan:
		found.VLAN = d.VlanId
	case *netlink.Vxlan:
		found.VNI, found.Port4, found.External = d.VxlanId, d.Port, d.FlowBased
		found.Local, found.Remote = addrOf(d.SrcAddr), addrOf(d.Group)
	case *netlink.Geneve:
		found.VNI, found.Port4, found.Remote, found.External = int(d.ID), int(d.Dport), addrOf(d.Remote), d.FlowBased
	case *netlink.Iptun:
		found.External = d.FlowBased
		found.Local, found.Remote = addrOf(d.Local), addrOf(d.Remote)
	case *netlink.Gretun:
		found.VNI, found.External = int(d.IKey), d.FlowBased
		found.Local, found.Remote = addrOf(d.Local), addrOf(d.Remote)
	case *netlink.Gretap:
		found.VNI, found.External = int(d.IKey), d.FlowBased
		found.Local, found.Remote = addrOf(d.Local), addrOf(d.Remote)
	case *netlink.Ip6tnl:
		found.Local, found.Remote = addrOf(d.Local), addrOf(d.Remote)
	case *netlink.Sittun:
		found.Local, found.Remote = addrOf(d.Local), addrOf(d.Remote)
	}
	found.Tapped = a.MasterIndex == 0 && a.Promisc != 0
	found.ARPIgnore = max(confOf("ipv4", "all", "arp_ignore"), confOf("ipv4", a.Name, "arp_ignore"))
	found.ARPAnnounce = max(confOf("ipv4", "all", "arp_announce"), confOf("ipv4", a.Name, "arp_announce"))
	found.ProxyARP = confOf("ipv4", "all", "proxy_arp")+confOf("ipv4", a.Name, "proxy_arp")+confOf("ipv6", "all", "proxy_ndp")+confOf("ipv6", a.Name, "proxy_ndp") > 0
	return found
}

func addrOf(ip []byte) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	if a = a.Unmap(); a.IsUnspecified() {
		return netip.Addr{}
	}
	return a
}

// confOf is a device's setting; 0 where there is none.
func confOf(family, device, key string) int {
	n, err := readSysctl("net/" + family + "/conf/" + device + "/" + key)
	if err != nil {
		return 0
	}
	return n
}

// Locate finds the namespace that a file leads to (a name under /run/netns, a
// path, or /proc/PID/ns/net) and remembers the way, so that it can be opened later.
func (d *Directory) Locate(path string) (trace.Place, error) {
	handle, ns, err := openNamespace(path)
	if err != nil {
		return trace.Place{}, err
	}
	handle.Close()
	d.mu.Lock()
	if d.located == nil {
		d.located = make(map[trace.Netns]string)
	}
	d.located[ns] = path
	d.mu.Unlock()
	return d.Place(ns), nil
}

// ProcessPath is the file of a process's network namespace.
func ProcessPath(pid int) string { return "/proc/" + strconv.Itoa(pid) + "/ns/net" }

// NamePath is the file of a network namespace that has a name (ip-netns(8)).
func NamePath(name string) string { return hostSources().names + "/" + name }

// Host is the namespace that this process, and the node's own, is in.
func (d *Directory) Host() trace.Place { return d.host }

// Names lists the names of namespaces, for completion.
func (d *Directory) Names() []string {
	d.mu.RLock()
	defer d.mu.RUnlock()
	var names []string
	for _, name := range d.found.names {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}
