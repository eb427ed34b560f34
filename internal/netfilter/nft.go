package netfilter

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// Bounds of what is read for one answer.
const (
	mostChains   = 100_000
	mostRules    = 100_000
	mostElements = 200_000
)

// errMany says that a bound was reached.
var errMany = errors.New("too many to read")

// nftReader reads the nftables rules of the namespace.
type nftReader struct {
	socket          *socket
	rules, elements int
}

// read returns the tables and chains; rules and elements are fetched when the
// walk asks for them.
func (r *nftReader) read() ([]*table, error) {
	var tables []*table
	err := r.socket.dump(unix.NFT_MSG_GETTABLE, unix.NFPROTO_UNSPEC, nil, func(f family, b []byte) error {
		if t := decodeTable(f, b); t != nil && len(tables) < mostChains {
			tables = append(tables, t)
		}
		return nil
	})
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL) {
		return nil, nil // a kernel without nftables
	}
	if err != nil {
		return nil, fmt.Errorf("list nftables tables: %w", err)
	}
	if len(tables) == 0 {
		return nil, nil
	}
	if err := r.chains(tables); err != nil {
		return nil, fmt.Errorf("list nftables chains: %w", err)
	}
	for _, t := range tables {
		if len(t.chains) == 0 {
			continue
		}
		if err := r.sets(t); err != nil {
			return nil, fmt.Errorf("list nftables sets: %w", err)
		}
		t.backend = backendOf(t)
	}
	return tables, nil
}

// nftaTableHandle is NFTA_TABLE_HANDLE.
const nftaTableHandle = 4

// decodeTable reads a table; one that is dormant is not in the packet's way.
func decodeTable(f family, b []byte) *table {
	t := &table{family: f, chains: map[string]*chain{}, sets: map[string]*set{}, backend: backendNFT}
	for kind, v := range attributes(b) {
		switch kind {
		case unix.NFTA_TABLE_NAME:
			t.name = cString(v)
		case unix.NFTA_TABLE_FLAGS:
			if be32(v)&unix.NFT_TABLE_F_DORMANT != 0 {
				return nil
			}
		case nftaTableHandle:
			t.handle = be64(v)
		}
	}
	return t
}

// chains reads the chains of all tables.
func (r *nftReader) chains(tables []*table) error {
	type key struct {
		family family
		name   string
	}
	byName := map[key]*table{}
	for _, t := range tables {
		byName[key{t.family, t.name}] = t
	}
	count := 0
	return r.socket.dump(unix.NFT_MSG_GETCHAIN, unix.NFPROTO_UNSPEC, nil, func(f family, b []byte) error {
		c, tableName := decodeChain(b)
		t := byName[key{f, tableName}]
		if t == nil {
			return nil
		}
		if count++; count > mostChains {
			return errMany
		}
		c.table, c.fetch = t, r.fetchRules
		t.chains[c.name] = c
		return nil
	})
}

func decodeChain(b []byte) (c *chain, table string) {
	c = &chain{}
	var hook base
	for kind, v := range attributes(b) {
		switch kind {
		case unix.NFTA_CHAIN_TABLE:
			table = cString(v)
		case unix.NFTA_CHAIN_NAME:
			c.name = cString(v)
		case unix.NFTA_CHAIN_HANDLE:
			c.handle = be64(v)
		case unix.NFTA_CHAIN_TYPE:
			hook.kind = cString(v)
		case unix.NFTA_CHAIN_POLICY:
			hook.drop = verdictCode(be32(v)) == verdictDrop
		case unix.NFTA_CHAIN_COUNTERS:
			hook.counter = decodeCounter(v)
		case unix.NFTA_CHAIN_HOOK:
			c.base = &hook
			decodeHook(&hook, v)
		}
	}
	return c, table
}

// nftaHookDevs is NFTA_HOOK_DEVS, a list of NFTA_DEVICE_NAME.
const (
	nftaHookDevs   = 4
	nftaDeviceName = 1
)

func decodeHook(h *base, b []byte) {
	for kind, v := range attributes(b) {
		switch kind {
		case unix.NFTA_HOOK_HOOKNUM:
			h.hook = be32(v)
		case unix.NFTA_HOOK_PRIORITY:
			h.priority = int32(be32(v))
		case unix.NFTA_HOOK_DEV:
			h.addDevice(cString(v))
		case nftaHookDevs:
			for kind, name := range attributes(v) {
				if kind == nftaDeviceName {
					h.addDevice(cString(name))
				}
			}
		}
	}
}

func (h *base) addDevice(name string) {
	if !slices.Contains(h.devices, name) {
		h.devices = append(h.devices, name)
	}
}

func decodeCounter(b []byte) counter {
	c := counter{counted: true}
	for kind, v := range attributes(b) {
		if kind == unix.NFTA_COUNTER_PACKETS {
			c.packets = be64(v)
		}
	}
	return c
}

// fetchRules reads the rules of one chain.
func (r *nftReader) fetchRules(c *chain) ([]rule, error) {
	attrs := appendAttribute(nil, unix.NFTA_RULE_TABLE, append([]byte(c.table.name), 0))
	attrs = appendAttribute(attrs, unix.NFTA_RULE_CHAIN, append([]byte(c.name), 0))
	var rules []rule
	err := r.socket.dump(unix.NFT_MSG_GETRULE, c.table.family, attrs, func(f family, b []byte) error {
		rule, table, chain := decodeRule(b, c.table)
		if f != c.table.family || table != c.table.name || chain != c.name {
			return nil
		}
		if r.rules++; r.rules > mostRules {
			return errMany
		}
		rule.line = len(rules) + 1
		rules = append(rules, rule)
		return nil
	})
	if err != nil {
		return rules, fmt.Errorf("read rules of chain %q: %w", c.name, err)
	}
	return rules, nil
}

// decodeData reads a value or a verdict (enum nft_data_attributes).
func decodeData(b []byte) ([]byte, verdict) {
	for kind, v := range attributes(b) {
		switch kind {
		case unix.NFTA_DATA_VALUE:
			return slices.Clone(v[:min(len(v), registerBytes)]), verdict{}
		case unix.NFTA_DATA_VERDICT:
			var out verdict
			for kind, v := range attributes(v) {
				switch kind {
				case unix.NFTA_VERDICT_CODE:
					out.code = verdictCode(be32(v))
				case unix.NFTA_VERDICT_CHAIN:
					out.chain = cString(v)
				}
			}
			return nil, out
		}
	}
	return nil, verdict{}
}

// iptablesTables are the tables that iptables-nft makes, and their base chains
// with hook and priority (nft_ipv4 in iptables/nft.c of iptables).
var iptablesTables = map[string]map[string][2]int32{
	"raw": {"PREROUTING": {hookPrerouting, priorityRaw}, "OUTPUT": {hookOutput, priorityRaw}},
	"mangle": {
		"PREROUTING": {hookPrerouting, priorityMangle}, "INPUT": {hookInput, priorityMangle},
		"FORWARD": {hookForward, priorityMangle}, "OUTPUT": {hookOutput, priorityMangle},
		"POSTROUTING": {hookPostrouting, priorityMangle},
	},
	"nat": {
		"PREROUTING": {hookPrerouting, priorityDNAT}, "INPUT": {hookInput, prioritySNAT},
		"OUTPUT": {hookOutput, priorityDNAT}, "POSTROUTING": {hookPostrouting, prioritySNAT},
	},
	"filter": {
		"INPUT": {hookInput, priorityFilter}, "FORWARD": {hookForward, priorityFilter}, "OUTPUT": {hookOutput, priorityFilter},
	},
	"security": {
		"INPUT": {hookInput, prioritySecurity}, "FORWARD": {hookForward, prioritySecurity}, "OUTPUT": {hookOutput, prioritySecurity},
	},
}

// backendOf tells whose table it is. iptables-nft leaves no mark on its tables,
// but all their base chains have its names, hooks and priorities.
func backendOf(t *table) string {
	known := iptablesTables[t.name]
	if known == nil || t.family != familyIP && t.family != familyIP6 {
		return backendNFT
	}
	bases := 0
	for _, c := range t.chains {
		if c.base == nil {
			continue
		}
		want, ok := known[c.name]
		if !ok || want != [2]int32{int32(c.base.hook), c.base.priority} {
			return backendNFT
		}
		bases++
	}
	if bases == 0 {
		return backendNFT
	}
	return backendIPTablesNFT
}
