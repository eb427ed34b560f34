package netstate

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/replypath/replypath/pkg/trace"
)

// TestWalkAgreesWithKernel fills namespaces with random routes and rules and
// compares the walk with the kernel's own lookup of random packets, in both
// families. Packets come in by a device of a router without reverse-path
// filter, so that the kernel's lookup is about routes alone.
func TestWalkAgreesWithKernel(t *testing.T) {
	needRoot(t)
	const networks, packets = 8, 200
	for family, p := range plans {
		for seed := range uint64(networks) {
			t.Run(fmt.Sprintf("%s/%d", family, seed), func(t *testing.T) {
				h, _ := newHost(t, p)
				forward(h, p)
				random := rand.New(rand.NewPCG(seed, 1))
				for range 30 {
					randomRoute(h, p, random)
				}
				for i := range 12 {
					randomRule(h, p, random, 100+10*i)
				}
				h.inside(func() error { return compareWalk(t, h, p, random, packets) })
			})
		}
	}
}

func compareWalk(t *testing.T, h *space, p plan, random *rand.Rand, packets int) error {
	ctx := context.Background()
	rtnl, err := dialSocket(unix.NETLINK_ROUTE, true)
	if err != nil {
		return err
	}
	defer rtnl.Close()
	r := newReading(trace.Question{Packet: packet(p.client, p.vip)}, nil)
	r.attach(ctx, rtnl)
	seen := map[string]int{}
	for range packets {
		f := flow{
			src: randomAddr(p, random), dst: randomAddr(p, random), protocol: trace.TCP,
			sport: uint16(80 + random.IntN(3)), dport: uint16(80 + random.IntN(3)), mark: uint32(random.IntN(4)),
			iif: h.index([]string{"eth0", "eth1"}[random.IntN(2)]),
		}
		asked, err := r.ask(ctx, f, true)
		if err != nil {
			return err
		}
		walked, err := r.fib.walk(ctx, f)
		if err != nil {
			return err
		}
		r.fib.budget = maxRoutes
		if asked.Errno != 0 { // the kernel tells no more
			if asked.Errno != walked.Errno {
				t.Errorf("%+v: kernel says %s, walk says %s", f, describe(asked), describe(walked))
			}
			seen[unix.ErrnoName(asked.Errno)+walked.Type]++
			continue
		}
		asked.Source, walked.Source = netip.Addr{}, netip.Addr{}
		if asked != walked {
			t.Errorf("%+v: kernel says %s, walk says %s", f, describe(asked), describe(walked))
		}
		seen[fmt.Sprint(asked.Type, asked.Table)]++
	}
	t.Logf("%v", seen)
	return nil
}

// randomAddr draws from a small set of networks, so that routes and packets meet.
func randomAddr(p plan, random *rand.Rand) netip.Addr {
	if p.is6 {
		return netip.MustParseAddr(fmt.Sprintf("2001:db8:%x:%x::%x", random.IntN(4), random.IntN(4), 1+random.IntN(3)))
	}
	return netip.MustParseAddr(fmt.Sprintf("198.%d.%d.%d", random.IntN(4), random.IntN(4), 1+random.IntN(3)))
}

func randomPrefix(p plan, random *rand.Rand) string {
	lengths := []int{13, 14, 15, 16, 23, 24, 31, 32}
	if p.is6 {
		lengths = []int{44, 46, 47, 48, 63, 64, 127, 128}
	}
	if random.IntN(12) == 0 {
		lengths = []int{0}
	}
	prefix, _ := randomAddr(p, random).Prefix(lengths[random.IntN(len(lengths))])
	return prefix.String()
}

var randomTables = []int{unix.RT_TABLE_MAIN, 100, 101, 70000}

func randomRoute(h *space, p plan, random *rand.Rand) {
	kinds := []int{unix.RTN_BLACKHOLE, unix.RTN_UNREACHABLE, unix.RTN_PROHIBIT, unix.RTN_THROW}
	route := &netlink.Route{
		Dst: network(h.t, randomPrefix(p, random)), Priority: 10 + random.IntN(3), Table: randomTables[random.IntN(len(randomTables))],
	}
	switch n := random.IntN(10); {
	case n < 4:
		route.Type = kinds[n]
	case n < 7:
		route.Gw, route.LinkIndex = netip.MustParseAddr(p.gw0).AsSlice(), int(h.index("eth0"))
	default:
		route.Gw, route.LinkIndex = netip.MustParseAddr(p.gw1).AsSlice(), int(h.index("eth1"))
	}
	if err := h.RouteAdd(route); err != nil && err != unix.EEXIST {
		h.t.Fatalf("add route %s: %v", route, err)
	}
}

func randomRule(h *space, p plan, random *rand.Rand, priority int) {
	h.rule(p.is6, func(r *netlink.Rule) {
		r.Priority, r.Table = priority, randomTables[random.IntN(len(randomTables))]
		maybe := func(set func()) {
			if random.IntN(3) == 0 {
				set()
			}
		}
		maybe(func() { r.Src = network(h.t, randomPrefix(p, random)) })
		maybe(func() { r.Dst = network(h.t, randomPrefix(p, random)) })
		maybe(func() { r.Mark = uint32(random.IntN(4)) })
		maybe(func() { r.IifName = []string{"eth0", "eth1", "lo", "none"}[random.IntN(4)] })
		maybe(func() { r.IPProto, r.Dport = unix.IPPROTO_TCP, netlink.NewRulePortRange(80, uint16(80+random.IntN(2))) })
		maybe(func() { r.Sport = netlink.NewRulePortRange(81, 82) })
		maybe(func() { r.SuppressPrefixlen = random.IntN(16) })
		if r.Src != nil || r.Dst != nil || r.IifName != "" {
			r.Invert = random.IntN(4) == 0
		}
		switch random.IntN(14) {
		case 0:
			r.Type, r.Table = []uint8{unix.RTN_BLACKHOLE, unix.RTN_UNREACHABLE, unix.RTN_PROHIBIT}[random.IntN(3)], 0
		case 1, 2, 3:
			r.Goto = priority + 10*(1+random.IntN(3)) + random.IntN(2)*5
		}
	})
}
