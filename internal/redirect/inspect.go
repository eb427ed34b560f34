package redirect

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/replypath/replypath/internal/netfilter"
	"github.com/replypath/replypath/internal/netstate"
	"github.com/replypath/replypath/pkg/trace"
	"github.com/replypath/replypath/pkg/trace/mesh"
)

// Options say what is asked.
type Options struct {
	Place trace.Place
	// PID is a process of the application, whose resolver is asked about; 0: none is named.
	PID int
	// ProxyUID is the user of the proxy, where the caller knows it.
	ProxyUID *uint32
	ProxyGID *uint32
	// Before: the proxy is not started yet, so that nobody has to listen.
	Before bool
	// CNIDir is where the node keeps its CNI configuration.
	CNIDir string
	// Resolvers are the name servers of the application; nil: those of its resolv.conf, where it has one of its own.
	Resolvers []netip.Addr
	// Probe makes real handshakes, each within Patience.
	Probe    bool
	Patience time.Duration
	// Live: asked because of traffic, again and again: the kernel's features are not looked for.
	Live bool
	// Packets are first packets that were really seen, as their sender meant them.
	Packets []Packet
}

// Packet is the first of a connection that began or ended in the namespace.
type Packet struct {
	Role  trace.RedirectRole
	Tuple trace.Tuple
	UID   *uint32 // of who sent it; nil: not known
}

// Inspector asks the namespaces of this node.
type Inspector struct {
	places *netstate.Directory
	reader *netstate.Reader
}

// New makes an inspector.
func New() (*Inspector, error) {
	places, err := netstate.NewDirectory()
	if err != nil {
		return nil, fmt.Errorf("read the names of network namespaces: %w", err)
	}
	return &Inspector{places: places, reader: netstate.NewReader(places, nil)}, nil
}

// With makes an inspector that shares what an agent knows. It need not be closed.
func With(places *netstate.Directory, reader *netstate.Reader) *Inspector {
	return &Inspector{places: places, reader: reader}
}

// Close frees the inspector.
func (i *Inspector) Close() error { return i.reader.Close() }

// Locate finds the namespace that a file leads to.
func (i *Inspector) Locate(path string) (trace.Place, error) { return i.places.Locate(path) }

// Numbered finds the namespace with an inode number, if it has a name or a process.
func (i *Inspector) Numbered(ns trace.Netns) (trace.Place, error) {
	handle, err := i.places.Open(ns)
	if err != nil {
		return trace.Place{}, err
	}
	return i.places.Place(ns), handle.Close()
}

// Inspect asks a namespace. The error says that nothing could be asked at all.
func (i *Inspector) Inspect(ctx context.Context, o Options) (*trace.Redirection, error) {
	resolvers := o.Resolvers
	if resolvers == nil {
		resolvers = i.resolvers(&o)
	}
	r := &trace.Redirection{Place: o.Place, ReadAt: time.Now(), Before: o.Before}
	r.Setup = setup(o.CNIDir)
	var failed error
	err := i.reader.Inside(ctx, o.Place, func() error {
		n := &inspection{ctx: ctx, o: &o, r: r, resolvers: resolvers}
		failed = n.inspect()
		return nil
	})
	if err = errors.Join(err, failed); err != nil {
		return nil, err
	}
	if !o.Live && !slices.ContainsFunc(r.Families, func(f trace.RedirectFamily) bool { return f.Redirects() }) {
		r.Setup.Missing, r.Setup.Asked = missingFeatures()
	}
	return r, nil
}

// inspection is one namespace while it is asked.
type inspection struct {
	ctx       context.Context
	o         *Options
	r         *trace.Redirection
	resolvers []netip.Addr

	links     []link
	sockets   []trace.Socket
	halves    []*half
	addresses map[netip.Addr]bool // of this namespace
}

// link is a device of the namespace.
type link struct {
	trace.Interface
	loopback bool
	addrs    []netip.Addr
}

// half is one family while it is asked.
type half struct {
	*inspection
	six      bool
	rules    *netfilter.Rules
	mentions netfilter.Mentions
	family   *trace.RedirectFamily
	ports    []uint16 // of the application
	app      netfilter.Owner
}

func (n *inspection) inspect() error {
	if err := n.readLinks(); err != nil {
		return err
	}
	sockets, err := netstate.Listening(n.ctx)
	if n.sockets = sockets; err != nil {
		n.unread("listeners", err)
	}
	for _, six := range []bool{false, true} {
		rules, err := netfilter.Load(six)
		h := &half{inspection: n, six: six, rules: rules, family: &trace.RedirectFamily{Six: six}}
		h.unreadRules(err)
		n.halves = append(n.halves, h)
		defer h.rules.Close()
		h.mentions, err = rules.Mentions()
		h.unreadRules(err)
		h.prepare()
	}
	n.r.Mesh = n.meshName()
	app := netfilter.Owner{Known: true, UID: n.stranger(func(m *netfilter.Mentions) []uint32 { return m.UIDs }),
		GID: n.stranger(func(m *netfilter.Mentions) []uint32 { return m.GIDs }), GIDKnown: true}
	for _, h := range n.halves {
		h.app = app
		h.applications()
	}
	n.nameProxy()
	for _, h := range n.halves {
		h.proxy()
		h.exclusions()
		h.dangling()
		h.finish()
	}
	n.strays()
	n.packets()
	if n.o.Probe {
		n.probe()
	}
	for _, h := range n.halves {
		if h.rules.Changed() {
			h.unreadRules(errChanged)
		}
		n.r.Families = append(n.r.Families, *h.family)
	}
	slices.Sort(n.r.Unread)
	n.r.Unread = slices.Compact(n.r.Unread)
	return nil
}

func name(six bool) string {
	if six {
		return "IPv6"
	}
	return "IPv4"
}

func (n *inspection) unread(what string, err error) {
	n.r.Unread = append(n.r.Unread, what+": "+strings.ReplaceAll(err.Error(), "\n", "; "))
}

// errChanged says that somebody changed the rules while they were asked.
var errChanged = errors.New("they changed while they were read")

// unreadRules notes that not all rules could be read.
func (h *half) unreadRules(err error) {
	if err != nil {
		h.family.Unread = true
		h.unread(name(h.six)+" rules", err)
	}
}

// readLinks reads devices and addresses.
func (n *inspection) readLinks() error {
	links, err := netlink.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return fmt.Errorf("list devices: %w", err)
	}
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return fmt.Errorf("list addresses: %w", err)
	}
	n.addresses = make(map[netip.Addr]bool)
	for _, l := range links {
		a := l.Attrs()
		d := link{Interface: trace.Interface{Device: trace.Device{Index: uint32(a.Index), Name: a.Name}, Kind: l.Type(), Up: a.RawFlags&upFlag != 0},
			loopback: a.RawFlags&loopbackFlag != 0}
		for _, addr := range addrs {
			if ip, ok := netip.AddrFromSlice(addr.IP); ok && addr.LinkIndex == a.Index {
				d.addrs = append(d.addrs, ip.Unmap())
				n.addresses[ip.Unmap()] = true
			}
		}
		if d.loopback && d.Name == "lo" {
			n.r.Loopback = d.Interface
		}
		n.links = append(n.links, d)
		if routesLocalnet(d.Name) {
			n.r.Localnet = append(n.r.Localnet, d.Name)
		}
	}
	return nil
}

// prepare finds the family's own address.
func (h *half) prepare() {
	h.family.Opaque = h.mentions.Opaque
	for _, l := range h.links {
		for _, a := range l.addrs {
			if a.Is6() == h.six && !a.IsLoopback() && !a.IsLinkLocalUnicast() && a != passthrough(h.six) && !h.family.Used {
				h.family.Used, h.family.Address = true, a
			}
		}
	}
	if !h.six {
		return
	}
	if b, err := os.ReadFile("/proc/thread-self/net/if_inet6"); err != nil || len(b) == 0 {
		h.family.Used = false
	}
}

// meshName is the mesh that most chains belong to.
func (n *inspection) meshName() string {
	count := map[string]int{}
	best := ""
	for _, h := range n.halves {
		for _, c := range h.mentions.Chains {
			if m := mesh.OfChain(c.Name); m != nil {
				count[m.Name]++
				if best == "" || count[m.Name] > count[best] {
					best = m.Name
				}
			}
		}
		for _, c := range h.rules.Chains() {
			if m := mesh.OfChain(c.Name); m != nil && best == "" {
				best = m.Name
			}
		}
	}
	return best
}

// stranger is an id that no rule mentions and no socket has.
func (n *inspection) stranger(list func(*netfilter.Mentions) []uint32) uint32 {
	id := uint32(47110)
	for taken := true; taken; {
		taken = slices.ContainsFunc(n.sockets, func(s trace.Socket) bool { return s.UID == id })
		for _, h := range n.halves {
			taken = taken || slices.Contains(list(&h.mentions), id)
		}
		if taken {
			id++
		}
	}
	return id
}
