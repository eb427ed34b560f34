package netfilter

import (
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/replypath/replypath/pkg/trace"
)

// Rules are the rules that packets of one IP version meet in a namespace, read
// once and asked about many packets. They are to be used on a thread that is in
// that namespace, and by one goroutine at a time.
type Rules struct {
	set    *ruleset
	family family // familyIP or familyIP6
	socket *socket
	routes *kernelRoutes
	devs   map[uint32]string
	divert map[*table]bool
}

// Load reads the rules of the calling thread's namespace. The error says what
// could not be read; the rules that come with it are the rest.
func Load(is6 bool) (*Rules, error) {
	anywhere := netip.AddrPortFrom(netip.IPv4Unspecified(), 0)
	if is6 {
		anywhere = netip.AddrPortFrom(netip.IPv6Unspecified(), 0)
	}
	q := trace.Question{Packet: trace.Tuple{Src: anywhere, Dst: anywhere},
		Filters: []trace.NetfilterHook{trace.Prerouting, trace.Input, trace.Output, trace.Postrouting}}
	set, socket, err := readRuleset(q, time.Now().Add(loadLimit))
	r := &Rules{set: set, socket: socket, routes: &kernelRoutes{}, devs: make(map[uint32]string), divert: make(map[*table]bool), family: familyIP}
	if is6 {
		r.family = familyIP6
	}
	return r, err
}

// loadLimit bounds the reading of all rules: chains are fetched when a packet first comes by.
const loadLimit = 5 * time.Second

// Close frees the rules.
func (r *Rules) Close() {
	if r.socket != nil {
		r.socket.close()
		r.socket = nil
	}
}

// Changed reports whether somebody changed nftables' rules since they were first read.
func (r *Rules) Changed() bool { return r.socket != nil && r.socket.changed }

// meets reports whether packets of this IP version come through a table.
func (r *Rules) meets(t *table) bool { return t.family == r.family || t.family == familyInet }

// Sample is the first packet of a connection that has not been made.
type Sample struct {
	Hook  trace.NetfilterHook
	Tuple trace.Tuple
	// Original is the tuple before NAT; invalid where there is none.
	Original trace.Tuple
	Reply    bool            // it is the answer to the first packet
	In, Out  trace.Interface // names are enough
	Owner    Owner           // of packets that are made here
	Mark     uint32
	ConnMark uint32 // of its connection
}

// packet makes the packet that rules see.
func (s Sample) packet(r *Rules) *packet {
	original := s.Original
	if !original.IsValid() {
		original = s.Tuple
	}
	q := trace.Question{Packet: s.Tuple, In: s.In.Index, Out: s.Out.Index, Mark: s.Mark, Ahead: true,
		ConnMark:  trace.ConnMark{Known: true, Value: s.ConnMark},
		Conntrack: trace.Conntrack{Original: original, Reply: s.Tuple.Reverse(), Info: infoNew}}
	if s.Reply { // Tuple and Original are those of the answer
		q.Conntrack = trace.Conntrack{Original: original.Reverse(), Reply: s.Tuple, Info: infoEstablished + replyInfo}
	}
	if s.Tuple.Protocol == trace.TCP {
		q.Flags = trace.SYN
		if s.Reply {
			q.Flags |= trace.ACK
		}
	}
	p := newPacket(q, s.In, s.Out, s.Hook, r.routes)
	p.owner, p.sample = s.Owner, true
	return p
}

// Diversion is where rules send a packet instead of its destination.
type Diversion struct {
	Kind  DiversionKind
	Addr  netip.Addr // invalid: the address of the device, or of the loopback
	Port  uint16     // 0: the packet's own
	Known bool       // false: the rule chooses, and how cannot be told from outside
}

// DiversionKind is how a packet is diverted.
type DiversionKind string

// The kinds.
const (
	DivertRedirect DiversionKind = "redirect"
	DivertDNAT     DiversionKind = "dnat"
	DivertTProxy   DiversionKind = "tproxy"
)

// Meeting is what the rules at a hook make of a sample.
type Meeting struct {
	Taken     bool // Diversion is where it goes
	Diversion Diversion
	// Rule is the one that took the packet, or let it go on purpose (Excused); "" where none did.
	Rule    string
	Excused bool
	// Chain holds Rule; Handle and Line name it there, in nftables and in iptables.
	Chain   string
	Handle  uint64
	Line    int
	Chains  []string // chains that it came through, without the base chains
	Backend string   // of the table that took it, or else of the last that it came through
	// Family, Table and Base are of the base chain that it came through: the one that took it, or the last that diverts others.
	Family, Table, Base string
	Zone                uint16 // of connection tracking
	Untracked           bool   // a rule exempts it from that, so that NAT does not see it
	Mark                uint32 // of the packet, after all rules of the hook; that of the sample where it cannot be told
	// Doubts are rules that may have decided otherwise: what they ask cannot be told from outside.
	Doubts []string
}

// Meet asks what the rules at a hook, those of address translation and
// transparent proxying, make of a sample.
func (r *Rules) Meet(s Sample) (Meeting, error) {
	f := &follower{rules: r, packet: s.packet(r)}
	for _, c := range r.set.bases(f.packet) {
		if c.base.kind == "nat" && f.met.Taken && f.met.Diversion.Kind != DivertTProxy {
			continue // one translation a hook
		}
		f.packet.at(c.base.priority)
		if c.base.kind == "nat" && f.packet.untracked {
			continue // connection tracking does it, and a rule has kept the packet from that
		}
		if !f.met.Taken && (c.base.kind == "nat" || r.diverts(c.table)) {
			f.met.Family, f.met.Table, f.met.Base, f.met.Backend = c.table.family.String(), c.table.name, c.name, c.table.backend
		}
		f.chain(c, 0) // what drops the packet is for Drops to tell
	}
	f.met.Mark = s.Mark
	if mark, known := f.packet.mark.masked32(); known == ^uint32(0) {
		f.met.Mark = mark
	}
	f.met.Zone, f.met.Untracked = f.packet.zone, f.packet.untracked
	return f.met, errors.Join(f.errs...)
}

// end is how a packet left a chain.
type end uint8

const (
	endFell     end = iota // out of its end
	endReturned            // a rule sent it back
	endAccepted            // its way through the base chain is over
	endDropped
)

// follower takes one sample through the chains of a hook. Unlike a walker it
// asks for one way only: what cannot be told is taken not to match, and noted.
type follower struct {
	rules  *Rules
	packet *packet
	met    Meeting
	steps  int
	errs   []error
}

// chain follows the packet through one chain.
func (f *follower) chain(c *chain, depth int) end {
	rules, err := c.load()
	if err != nil {
		f.errs = append(f.errs, err)
		f.doubt("chain " + c.name + ": " + err.Error())
	}
	for i := range rules {
		if f.steps++; f.steps > mostSteps {
			f.errs = append(f.errs, errSteps)
			return endAccepted
		}
		if e, left := f.rule(c, &rules[i], depth); left {
			return e
		}
	}
	return endFell
}

// rule asks one rule; left says that the packet does not go on to the next.
func (f *follower) rule(c *chain, r *rule, depth int) (e end, left bool) {
	p := f.packet
	translations, proxied := len(p.translations), p.proxied
	results, err := r.evaluate(p, c.table, true)
	if err != nil {
		f.errs = append(f.errs, err)
	}
	if p.proxied != proxied && !f.met.Taken {
		f.take(c, r, Diversion{Kind: DivertTProxy, Addr: p.proxied.addr, Port: p.proxied.port, Known: true})
		if p.proxied.iptables {
			return endAccepted, true
		}
	}
	for _, v := range results {
		switch {
		case v.truth == no:
			continue
		case v.truth == maybe:
			p.translations = p.translations[:translations]
			f.doubt(f.text(c, r))
			continue
		case len(p.translations) > translations:
			f.translated(c, r, p.translations[len(p.translations)-1])
			return endAccepted, true
		}
		if e, left := f.verdict(c, r, v.verdict, depth); left {
			return e, true
		}
	}
	return endFell, false
}

// verdict follows what a rule that matches decides.
func (f *follower) verdict(c *chain, r *rule, v verdict, depth int) (e end, left bool) {
	switch v.code {
	case verdictDrop:
		return endDropped, true
	case verdictAccept, verdictStolen, verdictQueue:
		f.excuse(c, r)
		return endAccepted, true
	case verdictReturn:
		f.excuse(c, r)
		return endReturned, true
	case verdictJump, verdictGoto:
		to := c.table.chains[v.chain]
		if to == nil || depth >= mostDepth {
			return endFell, v.code == verdictGoto
		}
		if c.base == nil || c.base.kind == "nat" || c.base.hook == hookPrerouting || c.base.hook == hookOutput {
			f.met.Chains = append(f.met.Chains, to.name)
		}
		e := f.chain(to, depth+1)
		if e == endAccepted || e == endDropped || v.code == verdictGoto {
			return e, true
		}
	case verdictOpaque:
		f.doubt(f.text(c, r))
	}
	return endFell, false
}

// translated notes destination NAT; source NAT does not divert.
func (f *follower) translated(c *chain, r *rule, t Translation) {
	switch t.Kind {
	case Redirect:
		f.take(c, r, Diversion{Kind: DivertRedirect, Port: t.Port, Known: !t.Unknown})
	case DestinationNAT:
		f.take(c, r, Diversion{Kind: DivertDNAT, Addr: t.Addr, Port: t.Port, Known: !t.Unknown})
	}
}

func (f *follower) take(c *chain, r *rule, d Diversion) {
	f.met.Taken, f.met.Excused, f.met.Diversion = true, false, d
	f.met.Backend = c.table.backend
	f.decided(c, r)
}

// excuse notes a rule that lets the packet go, in a chain that NAT or transparent proxying has.
func (f *follower) excuse(c *chain, r *rule) {
	if f.met.Taken || c.table.name != "nat" && !f.rules.diverts(c.table) {
		return
	}
	f.met.Excused = true
	f.decided(c, r)
}

// decided notes the rule that takes the packet or lets it go.
func (f *follower) decided(c *chain, r *rule) {
	f.met.Rule, f.met.Chain, f.met.Handle, f.met.Line = f.text(c, r), c.name, r.handle, r.line
}

// diverts reports whether a table diverts packets.
func (r *Rules) diverts(t *table) bool {
	known, ok := r.divert[t]
	if !ok {
		known = slices.ContainsFunc(slices.Collect(chainsOf(t)), divertsItself)
		r.divert[t] = known
	}
	return known
}

func (f *follower) doubt(text string) {
	if len(f.met.Doubts) < mostCandidates && !slices.Contains(f.met.Doubts, text) {
		f.met.Doubts = append(f.met.Doubts, text)
	}
}

func (f *follower) text(c *chain, r *rule) string { return r.text(c, f.rules.deviceName) }

func (r *Rules) deviceName(index uint32) string {
	name, ok := r.devs[index]
	if !ok {
		name = deviceName(index)
		r.devs[index] = name
	}
	return name
}

// Drops returns the rules or policies that would drop a sample at its hook: one
// that is certain, or candidates.
func (r *Rules) Drops(s Sample) ([]trace.FilterVerdict, error) {
	drops, err := r.set.drops(s.packet(r))
	var out []trace.FilterVerdict
	for _, d := range drops {
		if !d.queue {
			out = append(out, d.verdict(s.Hook))
		}
	}
	return out, err
}
