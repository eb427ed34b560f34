package netfilter

import (
	"encoding/binary"
	"net/netip"

	"github.com/replypath/replypath/pkg/trace"
	"golang.org/x/sys/unix"
)

// family is an nftables family (NFPROTO_* in include/uapi/linux/netfilter.h).
type family uint8

const (
	familyInet   family = unix.NFPROTO_INET
	familyIP     family = unix.NFPROTO_IPV4
	familyARP    family = unix.NFPROTO_ARP
	familyNetdev family = unix.NFPROTO_NETDEV
	familyBridge family = unix.NFPROTO_BRIDGE
	familyIP6    family = unix.NFPROTO_IPV6
)

// String returns nft's word for the family.
func (f family) String() string {
	switch f {
	case familyInet:
		return "inet"
	case familyIP:
		return "ip"
	case familyARP:
		return "arp"
	case familyNetdev:
		return "netdev"
	case familyBridge:
		return "bridge"
	case familyIP6:
		return "ip6"
	}
	return "unspec"
}

// Priorities of netfilter's own work (include/uapi/linux/netfilter_ipv4.h).
const (
	priorityDefrag    = -400
	priorityRaw       = -300
	priorityConntrack = -200
	priorityMangle    = -150
	priorityDNAT      = -100
	priorityFilter    = 0
	prioritySecurity  = 50
	prioritySNAT      = 100
)

// device is what a rule can ask about the device of one direction.
type device struct {
	there truth // the hook has a device in this direction
	index uint32
	name  string
	kind  string
}

// routes answers what rules ask of the routing tables.
type routes interface {
	// addrType returns the RTN_* type of an address as inet_addr_type does.
	addrType(netip.Addr) (uint8, bool)
	// reaches reports whether packets to an address leave by the device of that index.
	reaches(to, from netip.Addr, device, mark uint32) (reached, known bool)
	// isPort reports whether a device is a port of a bridge.
	isPort(index uint32) bool
	// bridgeOf returns the bridge that a device is a port of.
	bridgeOf(index uint32) (trace.Interface, bool)
}

// packet is a packet as a base chain of one hook and priority sees it.
type packet struct {
	hook      trace.NetfilterHook
	bridged   bool // the hook is one of family bridge
	priority  int32
	tuple     trace.Tuple
	flags     trace.TCPFlags
	in, out   device
	ports     ports // of a packet that crosses a bridge
	sourceMAC [6]byte
	mark      bits
	connMark  bits
	conntrack entry
	routes    routes

	markRead, markWritten bool
	asked                 trace.Question
	translations          []Translation // by the NAT rules that the walk came by
	untracked, clamped    bool          // rules that the walk came by said so
	tracking, whole       bool          // connection tracking is at work here; it has put the fragments together

	owner   Owner
	zone    uint16  // of connection tracking, as rules set it
	proxied *tproxy // the rule that hands it to a local socket
	sample  bool    // the first packet of a connection that no socket knows
}

// newPacket describes the packet of q at a hook.
func newPacket(q trace.Question, in, out trace.Interface, hook trace.NetfilterHook, routes routes) *packet {
	p := &packet{
		hook: hook, tuple: q.Packet, flags: q.Flags, sourceMAC: q.SourceMAC,
		mark: native32(q.Mark), routes: routes, asked: q,
		in:  hookDevice(hasIn(hook, q.In), q.In, in),
		out: hookDevice(hasOut(hook), q.Out, out),
	}
	p.connMark = unknownBits(4)
	if q.ConnMark.Known {
		p.connMark = native32(q.ConnMark.Value)
	}
	p.at(priorityFilter)
	return p
}

// at sets what depends on the priority: before conntrack has run the packet
// has no entry, and before destination NAT it has its first destination.
func (p *packet) at(priority int32) {
	q := p.asked
	p.priority, p.tuple, p.conntrack = priority, q.Packet, conntrackEntry(q)
	p.whole = p.tracking && !p.bridged && p.hook != trace.Ingress && (priority > priorityDefrag || p.hook != trace.Prerouting && p.hook != trace.Output)
	switch {
	case p.bridged:
		p.conntrack = entry{there: maybe} // nf_conntrack_bridge may be at work
		return
	case p.hook == trace.Ingress:
		p.conntrack = noEntry()
		return
	}
	if p.hook != trace.Prerouting && p.hook != trace.Output {
		return
	}
	looped := p.hook == trace.Prerouting && p.in.name == "lo"
	if priority < priorityConntrack && !looped {
		p.conntrack = noEntry()
	}
	if priority <= priorityDNAT && q.Conntrack.Known() && q.ICMPType == 0 && !looped && q.Conntrack.Info < replyInfo {
		p.tuple.Dst = q.Conntrack.Original.Dst
	}
}

// hasIn tells whether a hook has an input device (struct nf_hook_state).
func hasIn(hook trace.NetfilterHook, index uint32) truth {
	switch hook {
	case trace.Output, trace.Egress:
		return no
	case trace.Postrouting:
		return truthOf(index != 0)
	}
	return yes
}

// hasOut tells whether a hook has an output device.
func hasOut(hook trace.NetfilterHook) truth {
	switch hook {
	case trace.Prerouting, trace.Input, trace.Ingress:
		return no
	}
	return yes
}

// hookDevice joins what the question and the namespace say of a device.
func hookDevice(there truth, index uint32, i trace.Interface) device {
	if there == no {
		return device{}
	}
	d := device{there: there, index: index, name: i.Name, kind: i.Kind}
	if d.index == 0 {
		d.index = i.Index
	}
	if d.index != i.Index {
		d.name, d.kind = "", ""
	}
	if d.name == "lo" && d.index == 0 {
		d.index = 1
	}
	return d
}

// is6 reports whether the packet is IPv6.
func (p *packet) is6() bool { return p.tuple.Is6() }

// family is the packet's own family.
func (p *packet) family() family { return familyOf(p.tuple) }

// etherType is the packet's EtherType.
func (p *packet) etherType() uint16 {
	if p.asked.ARP != 0 {
		return unix.ETH_P_ARP
	}
	if p.is6() {
		return unix.ETH_P_IPV6
	}
	return unix.ETH_P_IP
}

// hasPorts reports whether the ports of the tuple are the packet's own: a
// fragment's tuple has none.
func (p *packet) hasPorts() bool {
	if p.isLater() {
		return false
	}
	switch p.tuple.Protocol {
	case trace.TCP, trace.UDP, unix.IPPROTO_SCTP, unix.IPPROTO_UDPLITE, unix.IPPROTO_DCCP:
		return p.tuple.Src.Port() != 0 || p.tuple.Dst.Port() != 0
	}
	return false
}

// Payload bases (enum nft_payload_bases).
const (
	baseLink      = 0
	baseNetwork   = 1
	baseTransport = 2
)

// field reads n bytes of a header. The truth says whether the packet has that
// header: a rule that reads one that is missing does not match.
func (p *packet) field(base, offset, n int) (bits, truth) {
	var header bits
	there := yes
	switch base {
	case baseLink:
		header, there = p.linkHeader()
	case baseNetwork:
		header = p.networkHeader()
	case baseTransport:
		header, there = p.transportHeader(), truthOf(!p.isLater())
	default:
		there = maybe
	}
	out := unknownBits(n)
	if offset >= 0 && offset < len(header.data) {
		copy(out.data, header.data[offset:])
		copy(out.known, header.known[offset:])
	}
	return out, there
}

// linkHeader is an Ethernet header; a packet made here has none yet.
func (p *packet) linkHeader() (bits, truth) {
	if p.hook == trace.Output || p.hook == trace.Postrouting && p.in.there == no {
		return bits{}, no
	}
	b := unknownBits(14)
	if p.sourceMAC != [6]byte{} {
		b.set(6, p.sourceMAC[:])
	}
	b.set(12, binary.BigEndian.AppendUint16(nil, p.etherType()))
	return b, p.in.ethernet().or(maybe)
}

// networkHeader is the IP header without options or extension headers.
func (p *packet) networkHeader() bits {
	if p.asked.ARP != 0 {
		return p.arpHeader()
	}
	src, dst := p.tuple.Src.Addr(), p.tuple.Dst.Addr()
	if p.is6() {
		b := unknownBits(40)
		b.data[0], b.known[0] = 0x60, 0xf0
		b.set(6, []byte{byte(p.tuple.Protocol)})
		if p.isPiece() {
			b.set(6, []byte{unix.IPPROTO_FRAGMENT})
		}
		s, d := src.As16(), dst.As16()
		b.set(8, s[:])
		b.set(24, d[:])
		return b
	}
	b := unknownBits(20)
	b.data[0], b.known[0] = 0x40, 0xf0
	offset, known := p.fragmentField()
	binary.BigEndian.PutUint16(b.data[6:], offset)
	binary.BigEndian.PutUint16(b.known[6:], known)
	b.set(9, []byte{byte(p.tuple.Protocol)})
	s, d := src.Unmap().As4(), dst.Unmap().As4()
	b.set(12, s[:])
	b.set(16, d[:])
	return b
}

// transportHeader is the TCP, UDP or ICMP header as far as it is known.
func (p *packet) transportHeader() bits {
	b := unknownBits(20)
	if kind := p.asked.ICMPType; kind != 0 && p.tuple.Protocol == icmpProtocol(p.is6()) {
		b.set(0, []byte{kind, p.asked.ICMPCode})
		return b
	}
	if !p.hasPorts() {
		return b
	}
	b.set(0, binary.BigEndian.AppendUint16(nil, p.tuple.Src.Port()))
	b.set(2, binary.BigEndian.AppendUint16(nil, p.tuple.Dst.Port()))
	if p.tuple.Protocol == trace.TCP && p.flags != 0 {
		b.set(13, []byte{byte(p.flags)})
	}
	return b
}

// arpHeader is that of an ARP message (RFC 826).
func (p *packet) arpHeader() bits {
	b := unknownBits(28)
	b.set(0, []byte{0, 1, 8, 0, 6, 4, 0, byte(p.asked.ARP)})
	src, dst := p.tuple.Src.Addr().Unmap().As4(), p.tuple.Dst.Addr().Unmap().As4()
	b.set(14, src[:])
	b.set(24, dst[:])
	return b
}

// set writes known bytes.
func (b bits) set(at int, data []byte) {
	copy(b.data[at:], data)
	for i := range data {
		b.known[at+i] = 0xff
	}
}

// ethernet tells whether the device has Ethernet headers.
func (d device) ethernet() truth {
	if d.name == "lo" {
		return yes
	}
	return d.hasType(unix.ARPHRD_ETHER)
}

// hasType compares the device's ARPHRD type, as far as its kind tells it.
func (d device) hasType(arphrd uint16) truth {
	if d.name == "lo" {
		return truthOf(arphrd == unix.ARPHRD_LOOPBACK)
	}
	switch d.kind {
	case "veth", "bridge", "vlan", "macvlan", "vxlan", "geneve", "bond", "team", "dummy":
		return truthOf(arphrd == unix.ARPHRD_ETHER)
	}
	return maybe
}

// nameBits is the name as rules compare it: padded with zeros to IFNAMSIZ.
func (d device) nameBits() bits {
	name := make([]byte, unix.IFNAMSIZ)
	switch {
	case d.there == no:
		return knownBits(name)
	case d.name == "":
		return unknownBits(len(name))
	}
	copy(name, d.name)
	return knownBits(name)
}

// indexBits is the interface index.
func (d device) indexBits() bits {
	if d.there != no && d.index == 0 {
		return unknownBits(4)
	}
	return native32(d.index)
}
