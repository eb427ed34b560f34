package netfilter

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/replypath/replypath/pkg/trace"
)

// TranslationKind is what a NAT rule rewrites.
type TranslationKind uint8

// The kinds.
const (
	DestinationNAT TranslationKind = iota + 1
	SourceNAT
	Masquerade // source NAT to an address of the output device
	Redirect   // destination NAT to this host
)

// Translation is what a NAT rule would make of the first packet of a connection.
type Translation struct {
	Kind    TranslationKind
	Addr    netip.Addr // invalid: it stays, or the device tells (Masquerade, Redirect), or Unknown
	Port    uint16     // 0: it stays
	Unknown bool       // the rule chooses, and how cannot be told from outside
	Certain bool       // the rule takes the packet, unless a candidate before it does
}

// Change is what the rules at a hook would make of a packet that they let pass.
type Change struct {
	// Translations is what NAT makes of the first packet of a connection: the
	// one that is certain, or the candidates before it in order.
	Translations []Translation
	Mark         uint32
	MarkKnown    bool // false: a rule sets the mark to what cannot be told from outside
	Untracked    bool // a rule exempts the packet from connection tracking
	ConnMark     trace.ConnMark
	Clamped      bool // a rule lowers the size of segments that TCP agrees on
	// Packet is as rules leave it that write addresses or ports to it themselves, without NAT; invalid: as it was.
	Packet trace.Tuple
	// By are the rules that do so, in the order in which the packet meets them.
	By []trace.FilterVerdict
}

// alteration is what rules have made of a packet so far.
type alteration struct {
	translations int
	untracked    bool
	packet       trace.Tuple
}

func (p *packet) altered() alteration {
	return alteration{len(p.translations), p.untracked, p.asked.Packet}
}

// Changes returns what the rules at a hook of the calling thread's namespace
// would make of the packet of q.
func Changes(q trace.Question, in, out trace.Interface, hook trace.NetfilterHook) (Change, error) {
	q.Filters = []trace.NetfilterHook{hook}
	rules, socket, err := readRuleset(q, time.Now().Add(timeLimit))
	if socket != nil {
		defer socket.close()
	}
	p := newPacket(q, withName(in, q.In), withName(out, q.Out), hook, &kernelRoutes{})
	w := &walker{packet: p}
	w.hook(rules.bases(p))
	mark, known := p.mark.masked32()
	change := Change{Translations: p.translations, Mark: mark, MarkKnown: known == ^uint32(0),
		Untracked: p.untracked, Clamped: p.clamped}
	if conn, known := p.connMark.masked32(); known == ^uint32(0) && q.ConnMark.Known {
		change.ConnMark = trace.ConnMark{Known: true, Value: conn}
	}
	if p.asked.Packet != q.Packet {
		change.Packet = p.asked.Packet
	}
	for _, d := range w.changers {
		change.By = append(change.By, d.verdict(hook))
	}
	for i, t := range p.translations {
		if t.Certain {
			change.Translations = p.translations[:i+1]
			break
		}
	}
	return change, errors.Join(append(w.errs, err)...)
}

// newAddress is what a NAT expression rewrites to.
type newAddress struct {
	kind  TranslationKind
	fixed *Translation // of a target of iptables: no registers
	// Registers of nftables; 0: none.
	addr, addrMax, port, portMax register
	flags                        uint32
}

// translate notes what the NAT expression would do.
func (m *machine) translate(to newAddress) {
	if to.kind == 0 {
		return
	}
	t := Translation{Kind: to.kind}
	if to.fixed != nil {
		t = *to.fixed
	}
	size := 4
	if m.packet.is6() {
		size = 16
	}
	if to.addr != 0 {
		b := m.load(to.addr, size)
		same := to.addrMax == 0 || to.addrMax == to.addr || sameBits(b, m.load(to.addrMax, size))
		t.Addr, _ = netip.AddrFromSlice(b.data)
		t.Unknown = !b.whole() || !same || to.flags&rangeNetmap != 0
	}
	if to.port != 0 {
		b := m.load(to.port, 2)
		t.Port = binary.BigEndian.Uint16(b.data)
		t.Unknown = t.Unknown || !b.whole() || to.portMax != 0 && !sameBits(b, m.load(to.portMax, 2))
	}
	t.Certain = m.sure && m.match == yes
	m.packet.translations = append(m.packet.translations, t)
}

func sameBits(a, b bits) bool { return a.whole() && b.whole() && a.equal(b.data) == yes }

// decodeNAT decodes nftables' snat and dnat.
func decodeNAT(a *attributeValues) newAddress {
	to := newAddress{
		kind: SourceNAT, flags: be32(a[unix.NFTA_NAT_FLAGS]),
		addr: a.register(unix.NFTA_NAT_REG_ADDR_MIN), addrMax: a.register(unix.NFTA_NAT_REG_ADDR_MAX),
		port: a.register(unix.NFTA_NAT_REG_PROTO_MIN), portMax: a.register(unix.NFTA_NAT_REG_PROTO_MAX),
	}
	if be32(a[unix.NFTA_NAT_TYPE]) == unix.NFT_NAT_DNAT {
		to.kind = DestinationNAT
	}
	return to
}

// Flags of a range (include/uapi/linux/netfilter/nf_nat.h).
const (
	rangeMapAddresses = 1 << 0
	rangePorts        = 1 << 1
	rangeNetmap       = 1 << 6
)

// decodeTargetNAT decodes the range that NAT targets of iptables carry:
// struct nf_nat_ipv4_multi_range_compat in revision 0 for IPv4, else struct
// nf_nat_range, which starts like nf_nat_range2.
func decodeTargetNAT(name string, revision uint8, data []byte, is6 bool) newAddress {
	kinds := map[string]TranslationKind{"DNAT": DestinationNAT, "SNAT": SourceNAT, "MASQUERADE": Masquerade, "REDIRECT": Redirect, "NETMAP": DestinationNAT}
	t := Translation{Kind: kinds[name], Unknown: name == "NETMAP"}
	r := &reader{data: data}
	var flags uint32
	var low, high netip.Addr
	if revision == 0 && !is6 {
		r.u32() // how many ranges: always one
		flags = r.u32()
		low, high = netip.AddrFrom4([4]byte(r.bytes(4))), netip.AddrFrom4([4]byte(r.bytes(4)))
	} else {
		flags = r.u32()
		low, high = r.address(is6), r.address(is6)
	}
	first, last := r.be16(), r.be16()
	if flags&rangeMapAddresses != 0 {
		t.Addr = low
		t.Unknown = t.Unknown || low != high
	}
	if flags&rangePorts != 0 {
		t.Port = first
		t.Unknown = t.Unknown || first != last
	}
	t.Unknown = t.Unknown || r.short
	return newAddress{kind: t.Kind, fixed: &t}
}
