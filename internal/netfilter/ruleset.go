package netfilter

import (
	"math"
	"slices"

	"github.com/replypath/replypath/pkg/trace"
)

// Backends, as trace.FilterVerdict names them.
const (
	backendNFT         = "nft"
	backendIPTablesNFT = "iptables-nft"
	backendLegacy      = "iptables-legacy"
)

// ruleset is the rules of a namespace, as far as they were read.
type ruleset struct {
	tables []*table
}

// table is a table of nftables or of iptables-legacy.
type table struct {
	family  family
	name    string
	backend string
	handle  uint64
	chains  map[string]*chain
	sets    map[string]*set
}

// iptables reports whether the table is written in iptables' language.
func (t *table) iptables() bool { return t.backend != backendNFT }

// chain is a list of rules. Its rules are fetched when the walk first gets
// there: a node of Kubernetes has ten thousands, of which one packet meets few.
type chain struct {
	table  *table
	name   string
	handle uint64
	base   *base // nil for a chain that others jump to

	rules []rule
	fetch func(*chain) ([]rule, error) // nil: rules is all
	err   error
}

// base is how a chain is hooked into the packet's way.
type base struct {
	hook     uint32 // NF_INET_*, NF_NETDEV_* or NF_BR_*, by the table's family
	priority int32
	kind     string // "filter", "nat" or "route"
	drop     bool   // the policy
	devices  []string
	counter
}

// counter is a packet counter, where there is one.
type counter struct {
	counted bool
	packets uint64
}

// never reports that the counter shows that no packet came by.
func (c counter) never() bool { return c.counted && c.packets == 0 }

// rule is one rule of a chain.
type rule struct {
	handle  uint64
	line    int // from 1
	exprs   []expr
	comment string
	counter
}

// load returns the chain's rules, from the kernel when it is the first time.
func (c *chain) load() ([]rule, error) {
	if c.fetch != nil {
		c.rules, c.err = c.fetch(c)
		c.fetch = nil
	}
	return c.rules, c.err
}

// verdictCode is what a rule decides (NF_* and enum nft_verdicts).
type verdictCode int32

const (
	verdictDrop     verdictCode = 0
	verdictAccept   verdictCode = 1
	verdictStolen   verdictCode = 2
	verdictQueue    verdictCode = 3
	verdictContinue verdictCode = -1
	verdictBreak    verdictCode = -2
	verdictJump     verdictCode = -3
	verdictGoto     verdictCode = -4
	verdictReturn   verdictCode = -5

	// verdictOpaque is a target that is not understood: it may end the
	// packet's way or not.
	verdictOpaque verdictCode = math.MinInt32
)

// verdict is a decision and, for a jump, where to.
type verdict struct {
	code   verdictCode
	chain  string
	reject bool
	queue  bool // for a program
	queues queues
}

// Hook numbers (enum nf_inet_hooks, enum nf_dev_hooks).
const (
	hookPrerouting    = 0
	hookInput         = 1
	hookForward       = 2
	hookOutput        = 3
	hookPostrouting   = 4
	hookInetIngress   = 5
	hookNetdevIngress = 0
	hookNetdevEgress  = 1
)

// ipHooks are the hooks that all families but netdev share.
var ipHooks = map[trace.NetfilterHook]uint32{
	trace.Prerouting: hookPrerouting, trace.Input: hookInput, trace.Forward: hookForward,
	trace.Output: hookOutput, trace.Postrouting: hookPostrouting,
}

// arpHooks are those of ARP (include/uapi/linux/netfilter_arp.h).
var arpHooks = map[trace.NetfilterHook]uint32{trace.Input: 0, trace.Output: 1}

// hookedAt reports whether the base chain is at the hook for the packet's family.
func (c *chain) hookedAt(p *packet) bool {
	if c.base == nil || p.bridged != (c.table.family == familyBridge) {
		return false
	}
	if isARP := c.table.family == familyARP; isARP || p.asked.ARP != 0 {
		number, ok := arpHooks[p.hook]
		return isARP && p.asked.ARP != 0 && ok && c.base.hook == number
	}
	switch c.table.family {
	case familyNetdev:
		return p.hook == trace.Ingress && c.base.hook == hookNetdevIngress ||
			p.hook == trace.Egress && c.base.hook == hookNetdevEgress
	case familyInet:
		if p.hook == trace.Ingress {
			return c.base.hook == hookInetIngress
		}
	case familyBridge:
	case familyIP, familyIP6:
		if c.table.family != p.family() {
			return false
		}
	default:
		return false
	}
	number, ok := ipHooks[p.hook]
	return ok && c.base.hook == number
}

// bases returns the base chains that a packet meets at its hook, in order. Of
// two chains with one priority the kernel runs the one that came last first
// (nf_hook_grow in net/netfilter/core.c); handles tell the order within a
// table, and tables are taken by theirs.
func (s *ruleset) bases(p *packet) []*chain {
	var out []*chain
	for _, t := range s.tables {
		for _, c := range t.chains {
			if c.hookedAt(p) {
				out = append(out, c)
			}
		}
	}
	slices.SortFunc(out, func(a, b *chain) int {
		if d := compare(int64(a.base.priority), int64(b.base.priority)); d != 0 {
			return d
		}
		if d := compare(int64(b.table.handle), int64(a.table.handle)); d != 0 {
			return d
		}
		return compare(int64(b.handle), int64(a.handle))
	})
	return out
}

func compare(a, b int64) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}
