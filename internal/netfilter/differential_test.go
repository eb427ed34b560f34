package netfilter

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/replypath/replypath/pkg/trace"
)

// The differential tests load random rule sets into a real firewall between two
// other namespaces, send packets through it and compare what was delivered with
// what Verdicts says.

// wire is client c0 - f0 firewall f1 - s0 server.
type wire struct {
	client, firewall, server *space
	atFirewall, atServer     *ear
	atClient                 *ear
	number                   uint32
	devices                  map[string]trace.Interface
}

var (
	clientAddrs   = addrs("10.1.0.2", "10.1.0.3", "10.1.0.77", "fd01::2", "fd01::3", "fd01::1:77")
	firewallAddrs = addrs("10.1.0.1", "192.0.2.1", "fd01::1", "2001:db8::1")
	serverAddrs   = addrs("10.2.0.2", "203.0.113.9", "fd02::2", "2001:db8:9::9")
)

func addrs(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, a := range list {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

func newWire(t testing.TB) *wire {
	w := &wire{client: newSpace(t), firewall: newSpace(t), server: newSpace(t)}
	join(w.client, "c0", w.firewall, "f0")
	join(w.firewall, "f1", w.server, "s0")
	w.client.address("c0", "10.1.0.2/24", "10.1.0.3/24", "10.1.0.77/24", "fd01::2/64", "fd01::3/64", "fd01::1:77/64")
	w.firewall.address("f0", "10.1.0.1/24", "fd01::1/64")
	w.firewall.address("lo", "192.0.2.1/32", "2001:db8::1/128")
	w.firewall.address("f1", "10.2.0.1/24", "fd02::1/64")
	w.server.address("s0", "10.2.0.2/24", "fd02::2/64")
	w.server.address("lo", "203.0.113.9/32", "2001:db8:9::9/128")
	w.client.run("route add default via 10.1.0.1\nroute add default via fd01::1\n", "ip", "-batch", "-")
	w.server.run("route add default via 10.2.0.1\nroute add default via fd02::1\n", "ip", "-batch", "-")
	w.firewall.run("route add 203.0.113.0/24 via 10.2.0.2\nroute add 2001:db8:9::/48 via fd02::2\n", "ip", "-batch", "-")
	w.firewall.set("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1", "net.ipv4.icmp_ratelimit=0")
	// Nobody shall answer: an RST would end the connection that a test goes on with.
	for _, s := range []*space{w.client, w.server} {
		s.run("table inet quiet { chain out { type filter hook output priority 300; tcp flags & rst == rst drop; icmpv6 type destination-unreachable drop; icmp type destination-unreachable drop; }; }\n", "nft", "-f", "-")
	}
	w.atClient, w.atFirewall, w.atServer = w.client.listen(), w.firewall.listen(), w.server.listen()
	w.devices = map[string]trace.Interface{}
	for _, name := range []string{"f0", "f1"} {
		w.devices[name] = trace.Interface{Device: trace.Device{Index: w.firewall.index(name), Name: name}, Kind: "veth", Up: true}
	}
	// Neighbours are resolved before a random rule set gets in the way.
	var first []*trial
	for _, hook := range []trace.NetfilterHook{trace.Forward, trace.Output} {
		for range 60 {
			first = append(first, w.newTrial(rand.New(rand.NewPCG(uint64(len(first)), 1)), hook))
		}
	}
	delivered := w.shoot(t, first)
	for deadline := time.Now().Add(3 * time.Second); len(delivered) < len(first) && time.Now().Before(deadline); {
		delivered = w.shoot(t, first)
	}
	if len(delivered) < len(first) {
		t.Fatalf("%d of %d packets arrived without any rules", len(delivered), len(first))
	}
	return w
}

// trial is one packet and what is known of its way.
type trial struct {
	shot
	hook     trace.NetfilterHook
	in, out  string
	question trace.Question
	verdicts []trace.FilterVerdict
}

// pick returns one of the list.
func pick[T any](r *rand.Rand, list ...T) T { return list[r.IntN(len(list))] }

var somePorts = []uint16{22, 53, 80, 443, 1000, 1500, 2000, 8080, 33000}

// newTrial makes a random packet for a hook.
func (w *wire) newTrial(r *rand.Rand, hook trace.NetfilterHook) *trial {
	w.number++
	t := &trial{hook: hook}
	t.number = w.number
	from, to := clientAddrs, firewallAddrs
	t.in = "f0"
	switch hook {
	case trace.Forward, trace.Postrouting:
		to, t.out = serverAddrs, "f1"
	case trace.Output:
		from, to, t.in, t.out = firewallAddrs, clientAddrs, "", "f0"
	}
	src := pick(r, from...)
	dst := pick(r, to...)
	for dst.Is4() != src.Is4() {
		dst = pick(r, to...)
	}
	t.tuple = trace.Tuple{
		Protocol: pick(r, trace.TCP, trace.UDP),
		Src:      netip.AddrPortFrom(src, pick(r, somePorts...)+uint16(r.IntN(3))),
		Dst:      netip.AddrPortFrom(dst, pick(r, somePorts...)),
	}
	if t.tuple.Protocol == trace.TCP {
		t.flags = pick(r, trace.SYN, trace.SYN, trace.SYN|trace.ACK)
	}
	switch {
	case hook == trace.Output:
		t.mark = pick[uint32](r, 0, 0, 1, 5, 0x105)
	case hook != trace.Prerouting:
		t.mark = marked[t.tuple.Src.Port()]
	}
	t.ask(w)
	return t
}

// marker marks packets before the hooks that look at the mark, by their source port.
const marker = "table inet marker { chain pre { type filter hook prerouting priority -290; meta mark set th sport map { 22 : 1, 80 : 5, 443 : 0x105, 53 : 6 }; }; }\n"

var marked = map[uint16]uint32{22: 1, 80: 5, 443: 0x105, 53: 6}

// ask makes the question that the packet's drop would lead to.
func (t *trial) ask(w *wire) {
	t.question = trace.Question{
		Packet: t.tuple, Flags: t.flags, Mark: t.mark, Filters: []trace.NetfilterHook{t.hook},
		In: w.devices[t.in].Index, Out: w.devices[t.out].Index,
	}
	if t.flags != trace.SYN|trace.ACK {
		t.question.Conntrack = trace.Conntrack{Original: t.tuple, Reply: t.tuple.Reverse(), Info: infoNew}
	}
}

// verdict asks for the packet's fate.
func (w *wire) verdict(tb testing.TB, t *trial) {
	var err error
	w.firewall.in(func() { t.verdicts, err = Verdicts(t.question, w.devices[t.in], w.devices[t.out]) })
	if err != nil {
		tb.Errorf("Verdicts(%v): %v", t.question, err)
	}
}

// shoot sends the packets and returns which were delivered.
func (w *wire) shoot(tb testing.TB, trials []*trial) map[uint32]bool {
	for _, e := range []*ear{w.atClient, w.atFirewall, w.atServer} {
		e.heard(tb, 0)
	}
	for _, t := range trials {
		if t.hook == trace.Output {
			w.firewall.fire(t.shot)
		} else {
			w.client.fire(t.shot)
		}
	}
	delivered := map[uint32]bool{}
	wait := 30 * time.Millisecond
	for _, e := range []*ear{w.atClient, w.atFirewall, w.atServer} {
		for n := range e.heard(tb, wait) {
			delivered[n] = true
		}
		wait = 0
	}
	return delivered
}

// check compares one verdict with what happened. open says that the rules hold
// matches that cannot be known.
func check(tb testing.TB, t *trial, delivered, open bool, rules string) bool {
	bad := ""
	switch {
	case delivered && len(t.verdicts) > 0 && (!open || t.verdicts[0].Certain):
		bad = "delivered, but a drop was told"
	case !delivered && len(t.verdicts) == 0:
		bad = "dropped, but no drop was told"
	case !delivered && !open && !t.verdicts[0].Certain:
		bad = "dropped, but not certain"
	case len(t.verdicts) > 1 && t.verdicts[0].Certain:
		bad = "several certain verdicts"
	}
	if bad == "" {
		return true
	}
	tb.Errorf("%s: %v flags %s at %s in %q out %q mark %d\n%+v\nrules:\n%s", bad, t.tuple, t.flags, t.hook, t.in, t.out, t.mark, t.verdicts, rules)
	return false
}

// roll makes a generator; REPLYPATH_SEED repeats a run.
func roll(t *testing.T) *rand.Rand {
	seed := rand.Uint64()
	if s := os.Getenv("REPLYPATH_SEED"); s != "" {
		seed, _ = strconv.ParseUint(s, 10, 64)
	}
	t.Logf("REPLYPATH_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// rounds is the number of random rule sets; REPLYPATH_ROUNDS asks for more.
func rounds(n int) int {
	if m, err := strconv.Atoi(os.Getenv("REPLYPATH_ROUNDS")); err == nil {
		return m
	}
	return n
}

func TestDifferentialNFT(t *testing.T) {
	w, r := newWire(t), roll(t)
	good, want := 0, rounds(30)
	for tries := 0; good < want; tries++ {
		if tries == 10*want {
			t.Fatalf("nft took %d of %d rule sets", good, tries)
		}
		g := &nftGenerator{r: r, hook: pick(r, trace.Input, trace.Forward, trace.Output, trace.Prerouting, trace.Postrouting)}
		rules := g.ruleset()
		if _, err := w.firewall.try("flush ruleset\n"+markerFor(g.hook)+rules, "nft", "-f", "-"); err != nil {
			continue // nft refuses a rule that contradicts itself
		}
		good++
		w.round(t, r, g.hook, rules, g.open)
	}
}

func TestDifferentialIPTables(t *testing.T) {
	w, r := newWire(t), roll(t)
	for i := range rounds(60) {
		hook := pick(r, trace.Input, trace.Forward, trace.Output, trace.Prerouting)
		backend := []string{"nft", "legacy"}[i%2]
		g := &iptablesGenerator{r: r, hook: hook, v6: r.IntN(2) == 0}
		rules := g.ruleset()
		w.firewall.run("flush ruleset\n"+markerFor(hook), "nft", "-f", "-")
		for _, c := range []string{"iptables-legacy-restore", "ip6tables-legacy-restore"} {
			w.firewall.run(emptyTables, c)
		}
		name := "iptables-" + backend + "-restore"
		if g.v6 {
			name = "ip6tables-" + backend + "-restore"
		}
		w.firewall.run(rules, name)
		w.round(t, r, hook, name+"\n"+rules, g.open)
	}
}

const emptyTables = `*raw
:PREROUTING ACCEPT
:OUTPUT ACCEPT
COMMIT
*mangle
:PREROUTING ACCEPT
:INPUT ACCEPT
:FORWARD ACCEPT
:OUTPUT ACCEPT
:POSTROUTING ACCEPT
COMMIT
*filter
:INPUT ACCEPT
:FORWARD ACCEPT
:OUTPUT ACCEPT
COMMIT
`

// round tries one rule set.
func (w *wire) round(t *testing.T, r *rand.Rand, hook trace.NetfilterHook, rules string, open bool) {
	t.Helper()
	// A connection that an earlier rule set has seen is not new.
	w.firewall.forget()
	var trials []*trial
	seen := map[trace.Tuple]bool{}
	for len(trials) < 30 {
		n := w.newTrial(r, hook)
		if !seen[n.tuple] && !seen[n.tuple.Reverse()] {
			seen[n.tuple] = true
			trials = append(trials, n)
		}
	}
	delivered := w.shoot(t, trials)
	for _, n := range trials {
		w.verdict(t, n)
		if !check(t, n, delivered[n.number], open, rules) {
			t.FailNow()
		}
	}
	tally(t, trials, rules)
	if hook != trace.Input {
		return
	}
	w.converse(t, trials, delivered, open, rules)
}

// tally compares the counters of the rules that are said to have dropped with
// the number of packets that they are said to have dropped.
func tally(t *testing.T, trials []*trial, rules string) {
	t.Helper()
	type place struct {
		table, chain string
		handle       uint64
		line         int
	}
	told := map[place]uint64{}
	for _, n := range trials {
		for _, v := range n.verdicts {
			if !v.Certain || !v.Counted || strings.Contains(v.Rule, "vmap") {
				continue
			}
			p := place{v.Family + v.Table, v.Chain, v.Handle, v.Line}
			if told[p]++; told[p] > v.Packets-1000 {
				t.Fatalf("%d packets are said to have been dropped by %+v\n%s", told[p], v, rules)
			}
		}
	}
}

// converse answers the UDP packets that came through, and answers the answers:
// the connections are established then.
func (w *wire) converse(t *testing.T, trials []*trial, delivered map[uint32]bool, open bool, rules string) {
	t.Helper()
	var again []*trial
	for _, n := range trials {
		if n.tuple.Protocol != trace.UDP || !delivered[n.number] {
			continue
		}
		w.number++
		answer := n.shot
		answer.tuple, answer.number = n.tuple.Reverse(), w.number
		w.firewall.fire(answer)
		w.number++
		next := *n
		next.number = w.number
		next.question.Conntrack.Info = infoEstablished
		again = append(again, &next)
	}
	heard := w.shoot(t, again)
	for _, n := range again {
		w.verdict(t, n)
		if !check(t, n, heard[n.number], open, "(established)\n"+rules) {
			t.FailNow()
		}
	}
}

// markerFor keeps the marks of PREROUTING's own tests alone.
func markerFor(hook trace.NetfilterHook) string {
	if hook == trace.Prerouting {
		return ""
	}
	return marker
}

// nftGenerator writes random rule sets in nft's language.
type nftGenerator struct {
	r     *rand.Rand
	hook  trace.NetfilterHook
	open  bool
	later []string // chains that may be jumped to
}

func (g *nftGenerator) ruleset() string {
	var b strings.Builder
	for i := range 1 + g.r.IntN(2) { // priorities differ: the order of tables with one priority is not known
		family := pick(g.r, "inet", "inet", "ip", "ip6")
		fmt.Fprintf(&b, "table %s t%d {\n%s", family, i, g.sets())
		names := []string{"u2", "u1", "u0"}
		g.later = nil
		for _, name := range names {
			fmt.Fprintf(&b, " chain %s {\n%s }\n", name, g.rules(family, 3))
			g.later = append(g.later, name)
		}
		for j := range 1 + g.r.IntN(2) {
			fmt.Fprintf(&b, " chain b%d {\n  type filter hook %s priority %d; policy %s;\n%s }\n", j,
				strings.ToLower(string(g.hook)), pick(g.r, -150, -10, 0, 5)+i, pick(g.r, "accept", "accept", "drop"), g.rules(family, 6))
		}
		b.WriteString("}\n")
	}
	return b.String()
}

func (g *nftGenerator) sets() string {
	return ` set ports { type inet_service; flags interval; elements = { 22, 50-60, 1000-1999, 60000-65535 } }
 set hosts { type ipv4_addr; elements = { 10.1.0.2, 192.0.2.1, 203.0.113.9 } }
 set nets { type ipv4_addr; flags interval; elements = { 10.1.0.0/26, 10.2.0.0-10.2.0.9, 192.0.2.0/24 } }
 set nets6 { type ipv6_addr; flags interval; elements = { fd01::2, fd02::/16, 2001:db8::/48 } }
 set pairs { type ipv4_addr . inet_service; elements = { 10.1.0.2 . 80, 192.0.2.1 . 443, 10.2.0.2 . 22, 203.0.113.9 . 8080 } }
 set areas { type ipv4_addr . inet_service; flags interval; elements = { 10.1.0.0/25 . 1-1023, 192.0.2.1 . 443-8080, 10.2.0.2 . 1000-3000 } }
 set areas6 { type ipv6_addr . inet_proto . inet_service; flags interval; elements = { fd01::/64 . tcp . 1-1023, 2001:db8::1 . udp . 53-443 } }
 set empty { type ipv4_addr; }
 map fate { type inet_service : verdict; flags interval; elements = { 22 : drop, 53-100 : accept, 1000-1500 : continue, 8080 : return } }
 map marks { type inet_service : mark; elements = { 22 : 1, 80 : 5, 443 : 0x100 } }
`
}

func (g *nftGenerator) rules(family string, n int) string {
	var b strings.Builder
	for range 1 + g.r.IntN(n) {
		var parts []string
		for range g.r.IntN(3) {
			parts = append(parts, g.match(family))
		}
		if g.r.IntN(3) == 0 {
			parts = append(parts, "counter packets 1000 bytes 0")
		}
		parts = append(parts, g.end(family, len(parts) == 0))
		b.WriteString("  " + strings.Join(parts, " ") + "\n")
	}
	return b.String()
}

// end is a rule's verdict.
func (g *nftGenerator) end(family string, bare bool) string {
	r := g.r
	if len(g.later) > 0 && r.IntN(3) == 0 {
		return pick(r, "jump ", "jump ", "goto ") + pick(r, g.later...)
	}
	switch r.IntN(12) {
	case 0, 1, 2, 3:
		if bare && r.IntN(4) > 0 {
			return "continue"
		}
		return "drop"
	case 4, 5, 6:
		return "accept"
	case 7:
		return "return"
	case 8:
		return pick(r, "tcp dport", "udp dport", "th dport") + " vmap @fate"
	case 9:
		g.open = true // the mark of a dropped packet is then not what it came with
		return pick(r, "meta mark set 5", "meta mark set meta mark or 0x100", "meta mark set tcp dport map @marks", "log prefix \"x\"", "meta mark set meta mark and 0xf0")
	case 10:
		return pick(r, "reject with icmpx admin-prohibited", "meta l4proto tcp reject with tcp reset")
	}
	return pick(r, "ct state vmap { established : accept, related : accept, invalid : drop }", "meta l4proto vmap { tcp : continue, udp : accept }",
		"th sport . th dport vmap { 22 . 80 : drop, 1000 . 443 : accept }", "ip saddr vmap { 10.1.0.2 : drop, 10.1.0.0-10.1.0.1 : accept, * : continue }")
}

// match is one condition.
func (g *nftGenerator) match(family string) string {
	r := g.r
	port := func() string { return fmt.Sprint(pick(r, somePorts...)) }
	neg := func() string { return pick(r, "", "", "!= ") }
	list := []string{
		"tcp dport " + neg() + port(), "udp dport " + neg() + port(), "th sport " + port() + "-" + "40000", "th dport { " + port() + ", 50-60, 9999 }",
		"tcp dport != { 22, 80 }", "th dport " + neg() + "@ports", "meta l4proto " + neg() + pick(r, "tcp", "udp"), "meta l4proto { tcp, sctp }",
		"iifname " + neg() + pick(r, `"f0"`, `"f1"`, `"f*"`, `"e*"`), "oifname " + neg() + pick(r, `"f0"`, `"f1"`, `"f*"`),
		"iif " + pick(r, "f0", "f1", "lo"), "oif " + neg() + pick(r, "f0", "f1", "lo"), "oifname { \"f1\", \"lo\" }",
		"ct state " + pick(r, "new", "established", "invalid", "established,related", "new,untracked", "!= new"),
		"ct direction original", "ct status ! dnat", "tcp flags syn / syn,ack", "tcp flags & (syn|ack) == (syn|ack)", "tcp flags syn",
		"meta mark " + neg() + pick(r, "0", "1", "5", "0x105"), "meta mark & 0x100 == 0x100", "meta mark & 0xff != 5", "meta mark < 5", "meta mark { 1, 5-7 }",
		"th dport >= 1000", "th dport < 1000", "th sport > 100 th sport < 3000", "udp sport > 0 ct original proto-dst " + port(), "fib daddr type " + pick(r, "local", "unicast", "broadcast"),
		"fib saddr type local", "meta nfproto " + pick(r, "ipv4", "ipv6"), "meta protocol " + pick(r, "ip", "ip6"), "th dport & 1 == 0", "fib saddr . iif oif " + pick(r, "missing", "exists"),
	}
	if g.hook == trace.Output || g.hook == trace.Postrouting || g.hook == trace.Forward {
		for i, m := range list {
			if strings.HasPrefix(m, "fib saddr . iif") {
				list[i] = "ct mark 0"
			}
		}
	}
	switch {
	case family == "ip" || family == "inet" && r.IntN(2) == 0:
		list = append(list, "ip saddr "+neg()+"10.1.0.2", "ip daddr "+neg()+"192.0.2.0/25", "ip saddr 10.1.0.3-10.1.0.99", "ip saddr "+neg()+"@nets", "ip daddr @hosts",
			"ip daddr . tcp dport @pairs", "ip saddr . th sport "+neg()+"@areas", "ip daddr . th dport @areas", "ip protocol "+neg()+"tcp", "ip saddr @empty", "ip saddr != @empty",
			"ip saddr & 0.0.0.1 == 0.0.0.1", "ip version 4", "ip frag-off & 0x1fff == 0", "ip daddr { 10.1.0.0/24, 203.0.113.9 }", "ct original ip saddr 10.1.0.2", "ip saddr >= 10.1.0.3")
	default:
		list = append(list, "ip6 saddr "+neg()+"fd01::2", "ip6 daddr fd01::/16", "ip6 saddr "+neg()+"@nets6", "ip6 daddr @nets6", "ip6 saddr . meta l4proto . th sport @areas6",
			"ip6 nexthdr tcp", "ip6 daddr { 2001:db8::/32, fd02::2 }", "ip6 saddr fd01::3-fd01::ffff")
	}
	m := pick(r, list...)
	if r.IntN(25) == 0 {
		g.open = true
		m = pick(r, "limit rate 1/second", "meta length > 30", "ip ttl > 10", "meta skuid 0", "meta random > 100")
		if family == "ip6" {
			m = "meta length > 30"
		}
	}
	if m == "ct mark 0" {
		g.open = true
	}
	if family == "ip" && strings.Contains(m, "nfproto ipv6") || family == "ip6" && strings.Contains(m, "nfproto ipv4") {
		return "th dport 80"
	}
	return m
}

// iptablesGenerator writes random rule sets in iptables' language.
type iptablesGenerator struct {
	r    *rand.Rand
	hook trace.NetfilterHook
	v6   bool
	open bool
}

func (g *iptablesGenerator) ruleset() string {
	var b strings.Builder
	tables := []string{"mangle", "filter"}
	if g.hook == trace.Prerouting {
		tables = []string{"raw", "mangle"}
	} else if g.hook == trace.Output {
		tables = []string{"raw", "mangle", "filter"}
	}
	for _, table := range tables {
		fmt.Fprintf(&b, "*%s\n:%s %s [1000:0]\n", table, g.hook, pick(g.r, "ACCEPT", "ACCEPT", "ACCEPT", "DROP"))
		for _, u := range []string{"u0", "u1"} {
			fmt.Fprintf(&b, ":%s - [0:0]\n", u)
		}
		for range 1 + g.r.IntN(7) {
			b.WriteString(g.rule(table, string(g.hook), "u0", "u1"))
		}
		for range g.r.IntN(4) {
			b.WriteString(g.rule(table, "u0", "u1"))
		}
		for range g.r.IntN(4) {
			b.WriteString(g.rule(table, "u1"))
		}
		b.WriteString("COMMIT\n")
	}
	return b.String()
}

func (g *iptablesGenerator) rule(table, chain string, later ...string) string {
	parts := []string{"[1000:0] -A " + chain}
	protocol := pick(g.r, "tcp", "udp", "")
	if protocol != "" {
		parts = append(parts, "-p "+protocol)
	}
	used := map[string]bool{}
	for range g.r.IntN(3) {
		m := g.match(table, chain, protocol)
		key := strings.Fields(strings.TrimPrefix(m, "! "))[0]
		if key == "-m" {
			key = strings.Fields(m)[1]
		}
		if strings.Contains(m, "port") { // multiport makes --dport ambiguous
			key = "ports"
		}
		if strings.Contains(m, "--syn") {
			key = "--tcp-flags"
		}
		if !used[key] {
			used[key] = true
			parts = append(parts, m)
		}
	}
	targets := []string{"-j DROP", "-j DROP", "-j ACCEPT", "-j ACCEPT", "-j RETURN", "", "-j LOG"}
	if table == "mangle" {
		targets = append(targets, "-j MARK --set-mark 5", "-j MARK --set-xmark 0x100/0x100", "-j MARK --or-mark 1")
	}
	if table == "filter" {
		targets = append(targets, "-j REJECT")
		if protocol == "tcp" {
			targets = append(targets, "-j REJECT --reject-with tcp-reset")
		}
	}
	for _, l := range later {
		targets = append(targets, "-j "+l, "-g "+l)
	}
	target := pick(g.r, targets...)
	g.open = g.open || strings.Contains(target, "MARK")
	return strings.Join(append(parts, target), " ") + "\n"
}

func (g *iptablesGenerator) match(table, chain, protocol string) string {
	r := g.r
	neg := func() string { return pick(r, "", "", "! ") }
	port := func() string { return fmt.Sprint(pick(r, somePorts...)) }
	list := []string{
		"-m mark " + neg() + "--mark " + pick(r, "0", "5", "0x100/0x100", "1/0xf"), "-m addrtype " + neg() + "--dst-type " + pick(r, "LOCAL", "UNICAST"),
		"-m addrtype --src-type LOCAL", "-m comment --comment \"a b\"",
	}
	if table != "raw" {
		list = append(list, "-m conntrack "+neg()+"--ctstate "+pick(r, "NEW", "INVALID", "ESTABLISHED,RELATED", "NEW,INVALID"), "-m state --state "+pick(r, "NEW", "ESTABLISHED", "INVALID"),
			"-m conntrack --ctdir ORIGINAL", "-m conntrack "+neg()+"--ctorigdstport 80", "-m conntrack --ctstate NEW --ctproto "+pick(r, "tcp", "udp"))
	}
	hook := g.hook
	if hook != trace.Output && chain != "u0" && chain != "u1" {
		list = append(list, neg()+"-i "+pick(r, "f0", "f+", "f1", "lo"))
	}
	if hook == trace.Output || hook == trace.Forward {
		list = append(list, neg()+"-o "+pick(r, "f0", "f+", "f1"))
	}
	if protocol != "" {
		list = append(list, neg()+"--dport "+port(), neg()+"--sport "+port(), "--dport 1000:3000", "--sport "+port()+" --dport "+port(), neg()+"--sport :1023", "-m multiport "+neg()+"--dports 22,50:60,443",
			"-m multiport --sports 1000:2000,8080", "-m multiport --ports 22,53")
	}
	if protocol == "tcp" {
		list = append(list, neg()+"--syn", "--tcp-flags SYN,ACK SYN,ACK")
	}
	if g.v6 {
		list = append(list, neg()+"-s fd01::2", neg()+"-d 2001:db8::/32", "-s fd01::/64", "-m iprange --src-range fd01::2-fd01::9", "-d fd02::2/128")
	} else {
		list = append(list, neg()+"-s 10.1.0.2", neg()+"-d 192.0.2.0/24", "-s 10.1.0.0/255.255.255.1", "-m iprange "+neg()+"--src-range 10.1.0.2-10.1.0.9", "-d 203.0.113.9")
	}
	if r.IntN(25) == 0 {
		g.open = true
		return pick(r, "-m limit --limit 1/s", "-m length --length 20:400", "-m statistic --mode random --probability 0.5")
	}
	return pick(r, list...)
}
