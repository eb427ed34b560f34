package netfilter

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// metaNames are the properties of meta that have a name in nft.
var metaNames = map[uint32]symbol{
	unix.NFT_META_LEN:     {text: "meta length", kind: kindIndex, size: 4},
	metaProtocol:          {text: "meta protocol", kind: kindEtherType, size: 2},
	metaMark:              {text: "meta mark", kind: kindMark, size: 4, option: "--mark"},
	metaIIF:               {text: "iif", kind: kindIndex, size: 4},
	metaOIF:               {text: "oif", kind: kindIndex, size: 4},
	metaIIFName:           {text: "iifname", kind: kindIfName, size: unix.IFNAMSIZ, option: "-i"},
	metaOIFName:           {text: "oifname", kind: kindIfName, size: unix.IFNAMSIZ, option: "-o"},
	metaIIFType:           {text: "iiftype", kind: kindDeviceType, size: 2},
	metaOIFType:           {text: "oiftype", kind: kindDeviceType, size: 2},
	unix.NFT_META_SKUID:   {text: "meta skuid", kind: kindIndex, size: 4},
	unix.NFT_META_SKGID:   {text: "meta skgid", kind: kindIndex, size: 4},
	metaNFProto:           {text: "meta nfproto", kind: kindNFProto, size: 1},
	metaL4Proto:           {text: "meta l4proto", kind: kindProtocol, size: 1, option: "-p"},
	metaBridgeIn:          {text: "meta ibrname", kind: kindIfName, size: unix.IFNAMSIZ},
	metaBridgeOut:         {text: "meta obrname", kind: kindIfName, size: unix.IFNAMSIZ},
	metaPktType:           {text: "meta pkttype", kind: kindPacketType, size: 1},
	unix.NFT_META_CPU:     {text: "meta cpu", kind: kindIndex, size: 4},
	unix.NFT_META_CGROUP:  {text: "meta cgroup", kind: kindIndex, size: 4},
	metaIIFKind:           {text: "meta iifkind", kind: kindIfName, size: unix.IFNAMSIZ},
	metaOIFKind:           {text: "meta oifkind", kind: kindIfName, size: unix.IFNAMSIZ},
	unix.NFT_META_PRANDOM: {text: "meta random", kind: kindNumber, size: 4},
}

// ctNames are nft's words for the keys of ct.
var ctNames = map[uint32]string{
	ctState: "state", ctDirection: "direction", ctStatus: "status", ctMark: "mark", 4: "secmark", 5: "expiration",
	6: "helper", ctL3Proto: "l3proto", ctSrc: "saddr", ctDst: "daddr", ctProto: "protocol", ctProtoSrc: "proto-src",
	ctProtoDst: "proto-dst", 13: "label", 14: "packets", 15: "bytes", 16: "avgpkt", 17: "zone", 18: "event",
	ctSrcIP: "ip saddr", ctDstIP: "ip daddr", ctSrcIP6: "ip6 saddr", ctDstIP6: "ip6 daddr", 23: "id",
}

var ctKinds = map[uint32]valueKind{
	ctState: kindState, ctStatus: kindStatus, ctDirection: kindDirection, ctMark: kindMark, ctL3Proto: kindNFProto,
	ctProto: kindProtocol, ctProtoSrc: kindPort, ctProtoDst: kindPort, ctSrcIP: kindIP4, ctDstIP: kindIP4,
	ctSrcIP6: kindIP6, ctDstIP6: kindIP6,
}

func ctName(key uint32) string {
	if n := ctNames[key]; n != "" {
		return n
	}
	return fmt.Sprintf("key %d", key)
}

// field is a header field: where it is and what nft calls it.
type field struct {
	offset, size int
	name         string
	kind         valueKind
	option       string
}

var headerFields = map[string][]field{
	"ip": {
		{0, 1, "version", kindVersion, ""},
		{1, 1, "dscp", kindDSCP, ""}, {2, 2, "length", kindPort, ""}, {4, 2, "id", kindPort, ""}, {6, 2, "frag-off", kindPort, ""},
		{8, 1, "ttl", kindNumber, ""}, {9, 1, "protocol", kindProtocol, "-p"}, {12, 4, "saddr", kindIP4, "-s"}, {16, 4, "daddr", kindIP4, "-d"},
	},
	"ip6": {
		{0, 1, "version", kindVersion, ""},
		{4, 2, "length", kindPort, ""}, {6, 1, "nexthdr", kindProtocol, ""}, {7, 1, "hoplimit", kindNumber, ""},
		{8, 16, "saddr", kindIP6, "-s"}, {24, 16, "daddr", kindIP6, "-d"},
	},
	"tcp": {
		{0, 2, "sport", kindPort, "--sport"}, {2, 2, "dport", kindPort, "--dport"}, {4, 4, "sequence", kindNumber, ""},
		{8, 4, "ackseq", kindNumber, ""}, {13, 1, "flags", kindTCPFlags, ""}, {14, 2, "window", kindPort, ""},
	},
	"udp":     {{0, 2, "sport", kindPort, "--sport"}, {2, 2, "dport", kindPort, "--dport"}, {4, 2, "length", kindPort, ""}},
	"udplite": {{0, 2, "sport", kindPort, ""}, {2, 2, "dport", kindPort, ""}},
	"sctp":    {{0, 2, "sport", kindPort, "--sport"}, {2, 2, "dport", kindPort, "--dport"}},
	"dccp":    {{0, 2, "sport", kindPort, ""}, {2, 2, "dport", kindPort, ""}},
	"th":      {{0, 2, "sport", kindPort, ""}, {2, 2, "dport", kindPort, ""}},
	"icmp":    {{0, 1, "type", kindICMP4, ""}, {1, 1, "code", kindNumber, ""}, {4, 2, "id", kindPort, ""}},
	"icmpv6":  {{0, 1, "type", kindICMP6, ""}, {1, 1, "code", kindNumber, ""}, {4, 2, "id", kindPort, ""}},
	"ether":   {{0, 6, "daddr", kindEther, ""}, {6, 6, "saddr", kindEther, ""}, {12, 2, "type", kindEtherType, ""}},
}

// symbol names the bytes that a payload expression loads.
func (e payload) symbol(settled []string, f family) symbol {
	protocol := ""
	switch e.base {
	case baseLink:
		protocol = "ether"
	case baseNetwork:
		protocol = networkName(e, settled, f)
	case baseTransport:
		protocol = "th"
		for _, s := range settled {
			if headerFields[s] != nil && s != "ip" && s != "ip6" && s != "ether" {
				protocol = s
			}
		}
	}
	for _, h := range headerFields[protocol] {
		isAddress := h.kind == kindIP4 || h.kind == kindIP6
		if h.offset == e.offset && (h.size == e.size || isAddress && e.size < h.size) {
			return symbol{text: protocol + " " + h.name, option: h.option, kind: h.kind, size: h.size, needs: protocol}
		}
	}
	name := []string{"ll", "nh", "th", "ih"}[min(e.base&3, 3)]
	return symbol{text: fmt.Sprintf("@%s,%d,%d", name, e.offset*8, e.size*8), size: e.size}
}

// networkName tells IPv4 from IPv6: by an earlier check, the table's family, or
// the place of the field.
func networkName(e payload, settled []string, f family) string {
	switch {
	case slices.Contains(settled, "ip") || f == familyIP:
		return "ip"
	case slices.Contains(settled, "ip6") || f == familyIP6:
		return "ip6"
	case e.size == 16 || e.offset == 24:
		return "ip6"
	}
	return "ip"
}

var protocolNames = map[uint8]string{
	1: "icmp", 2: "igmp", 4: "ipencap", 6: "tcp", 17: "udp", 33: "dccp", 41: "ipv6", 46: "rsvp", 47: "gre", 50: "esp", 51: "ah",
	58: "icmpv6", 89: "ospf", 112: "vrrp", 132: "sctp", 136: "udplite",
}

// protocolName is the name in /etc/protocols that nft and iptables print.
func protocolName(p uint8) string {
	if n := protocolNames[p]; n != "" {
		return n
	}
	return fmt.Sprint(p)
}

// words are the values of a kind that have names.
var words = map[valueKind]map[uint32]string{
	kindDirection:    {0: "original", 1: "reply"},
	kindNFProto:      {unix.NFPROTO_IPV4: "ipv4", unix.NFPROTO_IPV6: "ipv6"},
	kindNFProtoShort: {unix.NFPROTO_IPV4: "ip", unix.NFPROTO_IPV6: "ip6"},
	kindDeviceType:   {unix.ARPHRD_ETHER: "ether", unix.ARPHRD_LOOPBACK: "loopback"},
	kindPacketType:   {0: "host", 1: "broadcast", 2: "multicast", 3: "other"},
	kindAddrType: {0: "unspec", 1: "unicast", 2: "local", 3: "broadcast", 4: "anycast", 5: "multicast", 6: "blackhole",
		7: "unreachable", 8: "prohibit"},
	kindPresent: {0: "missing", 1: "exists"},
	kindICMP4: {0: "echo-reply", 3: "destination-unreachable", 5: "redirect", 8: "echo-request", 9: "router-advertisement",
		10: "router-solicitation", 11: "time-exceeded", 12: "parameter-problem", 13: "timestamp-request", 14: "timestamp-reply"},
	kindICMP6: {1: "destination-unreachable", 2: "packet-too-big", 3: "time-exceeded", 4: "parameter-problem", 128: "echo-request",
		129: "echo-reply", 130: "mld-listener-query", 131: "mld-listener-report", 133: "nd-router-solicit", 134: "nd-router-advert",
		135: "nd-neighbor-solicit", 136: "nd-neighbor-advert", 137: "nd-redirect"},
}

// flagWords are the bits of a kind that have names.
var flagWords = map[valueKind][]named{
	kindState: {{stateInvalid, "invalid"}, {stateEstablished, "established"}, {stateRelated, "related"}, {stateNew, "new"},
		{stateUntracked, "untracked"}},
	kindStatus: {{1, "expected"}, {2, "seen-reply"}, {4, "assured"}, {8, "confirmed"}, {statusSNAT, "snat"}, {statusDNAT, "dnat"},
		{0x200, "dying"}},
	kindTCPFlags: {{1, "fin"}, {2, "syn"}, {4, "rst"}, {8, "psh"}, {0x10, "ack"}, {0x20, "urg"}, {0x40, "ecn"}, {0x80, "cwr"}},
}
