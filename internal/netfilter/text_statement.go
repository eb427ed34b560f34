package netfilter

import (
	"encoding/binary"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// rejectNames are the codes of reject by its type and family, in nft's words.
var (
	rejectICMP   = map[uint8]string{0: "net-unreachable", 1: "host-unreachable", 2: "prot-unreachable", 3: "port-unreachable", 9: "net-prohibited", 10: "host-prohibited", 13: "admin-prohibited"}
	rejectICMPv6 = map[uint8]string{0: "no-route", 1: "admin-prohibited", 3: "addr-unreachable", 4: "port-unreachable", 5: "policy-fail", 6: "reject-route"}
	rejectICMPX  = map[uint8]string{0: "no-route", 1: "port-unreachable", 2: "host-unreachable", 3: "admin-prohibited"}
)

func (e rejecting) write(w *writer) {
	text := "reject with tcp reset"
	switch {
	case e.kind == unix.NFT_REJECT_ICMPX_UNREACH:
		text = "reject with icmpx " + rejectICMPX[e.code]
	case e.kind == unix.NFT_REJECT_ICMP_UNREACH && (w.table.family == familyIP6 || slices.Contains(w.dependency(), "ip6")):
		text = "reject with icmpv6 " + rejectICMPv6[e.code]
	case e.kind == unix.NFT_REJECT_ICMP_UNREACH:
		text = "reject with icmp " + rejectICMP[e.code]
	}
	t := term{nft: text}
	if e.kind == unix.NFT_REJECT_TCP_RST && w.table.family != familyInet {
		t.needs = []string{"tcp"}
	}
	w.add(t)
}

// rejectWith are enum ipt_reject_with and enum ip6t_reject_with.
var (
	rejectWith4 = []string{"icmp-net-unreachable", "icmp-host-unreachable", "icmp-proto-unreachable", "icmp-port-unreachable",
		"echo-reply", "icmp-net-prohibited", "icmp-host-prohibited", "tcp-reset", "icmp-admin-prohibited"}
	rejectWith6 = []string{"icmp6-no-route", "icmp6-adm-prohibited", "icmp6-not-neighbour", "icmp6-addr-unreachable",
		"icmp6-port-unreachable", "echo-reply", "tcp-reset", "icmp6-policy-fail", "icmp6-reject-route"}
)

func (e xtReject) write(w *writer) {
	names := rejectWith4
	if e.is6 {
		names = rejectWith6
	}
	text := "-j REJECT"
	if e.with < uint32(len(names)) {
		text += " --reject-with " + names[e.with]
	}
	w.add(term{nft: text, iptables: text})
}

// logText writes a log statement.
func logText(a *attributeValues) string {
	if p := cString(a[unix.NFTA_LOG_PREFIX]); p != "" {
		return "log prefix " + quoted(p)
	}
	return "log"
}

// queueText writes a queue statement with its first queue.
func queueText(a *attributeValues) string {
	const number, register = 1, 4 // NFTA_QUEUE_NUM, NFTA_QUEUE_SREG_QNUM
	if v := a[number]; len(v) == 2 && a[register] == nil {
		return fmt.Sprintf("queue to %d", binary.BigEndian.Uint16(v))
	}
	return "queue"
}

// limitText writes a rate limit.
func limitText(a *attributeValues) string {
	unit := fmt.Sprintf("%ds", be64(a[unix.NFTA_LIMIT_UNIT]))
	if n, ok := map[uint64]string{1: "second", 60: "minute", 3600: "hour", 86400: "day", 604800: "week"}[be64(a[unix.NFTA_LIMIT_UNIT])]; ok {
		unit = n
	}
	over := ""
	if be32(a[unix.NFTA_LIMIT_FLAGS])&unix.NFT_LIMIT_F_INV != 0 {
		over = "over "
	}
	bytes := ""
	if be32(a[unix.NFTA_LIMIT_TYPE]) == unix.NFT_LIMIT_PKT_BYTES {
		bytes = "bytes"
	}
	return fmt.Sprintf("limit rate %s%d%s/%s", over, be64(a[unix.NFTA_LIMIT_RATE]), bytes, unit)
}
