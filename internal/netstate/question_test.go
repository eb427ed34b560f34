package netstate

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/replypath/replypath/pkg/trace"
)

func TestReadOwnNamespace(t *testing.T) {
	for _, c := range []struct{ network, addr string }{{"tcp4", "127.0.0.1:0"}, {"tcp6", "[::1]:0"}} {
		l, err := net.Listen(c.network, c.addr)
		if err != nil {
			t.Logf("no loopback here: %v", err)
			continue
		}
		defer l.Close()
		dst := l.Addr().(*net.TCPAddr).AddrPort()
		r := newTestReader(t, nil)
		state := ask(t, r, trace.Question{
			Place:  trace.Place{Netns: r.inode},
			Packet: trace.Tuple{Protocol: trace.TCP, Src: netip.AddrPortFrom(dst.Addr(), 40000), Dst: dst},
		})
		if !state.DstLocal || !state.SrcLocal || state.Onward.Type != "local" || state.Back.Type != "local" {
			t.Errorf("%s: state = %+v, want all local", c.network, state)
		}
		if len(state.Listeners) != 1 || !state.Listeners[0].Matches || state.Listeners[0].Addr != dst {
			t.Errorf("%s: Listeners = %+v, want %s", c.network, state.Listeners, dst)
		}
	}
}

func TestReadRefuses(t *testing.T) {
	r := newTestReader(t, nil)
	for name, q := range map[string]trace.Question{
		"no addresses":   {Place: trace.Place{Netns: r.inode}},
		"mixed families": {Place: trace.Place{Netns: r.inode}, Packet: packet("10.0.0.1", "fd00::1")},
		"no namespace":   {Packet: packet("10.0.0.1", "10.0.0.2")},
		"gone namespace": {Place: trace.Place{Netns: 1, PID: os.Getpid()}, Packet: packet("10.0.0.1", "10.0.0.2")},
	} {
		if _, err := r.Read(context.Background(), q); err == nil {
			t.Errorf("%s: Read gave no error", name)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	state, err := r.Read(ctx, trace.Question{Place: trace.Place{Netns: r.inode}, Packet: packet("127.0.0.1", "127.0.0.1")})
	if err == nil && len(state.Unread) == 0 {
		t.Errorf("Read with an ended context gave %+v without a word", state)
	}
	must(t, r.Close())
	must(t, r.Close())
	q := trace.Question{Place: trace.Place{Netns: r.inode}, Packet: packet("127.0.0.1", "127.0.0.1")}
	if _, err := r.Read(context.Background(), q); !errors.Is(err, errClosed) {
		t.Errorf("Read after Close: %v, want errClosed", err)
	}
}

func TestReadFilters(t *testing.T) {
	p := plans["ipv4"]
	h, _ := newHost(t, p)
	want := trace.FilterVerdict{Hook: trace.Forward, Chain: "FORWARD"}
	fail := false
	r := newTestReader(t, func(q trace.Question, in, out trace.Interface) ([]trace.FilterVerdict, error) {
		var stat unix.Stat_t
		if err := unix.Stat("/proc/thread-self/ns/net", &stat); err != nil || trace.Netns(stat.Ino) != h.inode {
			t.Errorf("filters run in namespace %d (%v), want %d", stat.Ino, err, h.inode)
		}
		if in.Name != "eth1" || out.Name != "eth0" || !slices.Equal(q.Filters, []trace.NetfilterHook{trace.Forward}) {
			t.Errorf("filters got %+v, %+v, %+v", q, in, out)
		}
		if fail {
			return nil, errors.New("no nftables\nhere")
		}
		return []trace.FilterVerdict{want}, nil
	})
	q := trace.Question{Place: h.place(), Packet: packet(p.client, p.vip), In: h.index("eth1"), Out: h.index("eth0")}
	if got := ask(t, r, q).Filters; got != nil {
		t.Errorf("Filters = %+v though none were asked for", got)
	}
	q.Filters = []trace.NetfilterHook{trace.Forward}
	if got := ask(t, r, q).Filters; len(got) != 1 || got[0] != want {
		t.Errorf("Filters = %+v, want %+v", got, want)
	}
	fail = true
	state, err := r.Read(context.Background(), q)
	must(t, err)
	if want := []string{"filters: no nftables; here"}; !slices.Equal(state.Unread, want) {
		t.Errorf("Unread = %q, want %q", state.Unread, want)
	}
}

func TestReadDoesNotWaitForSlowFilters(t *testing.T) {
	p := plans["ipv4"]
	h, _ := newHost(t, p)
	defaultRoute(h, p)
	release := make(chan struct{})
	r := newTestReader(t, func(trace.Question, trace.Interface, trace.Interface) ([]trace.FilterVerdict, error) {
		<-release
		return nil, nil
	})
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	started := time.Now()
	state, err := r.Read(ctx, trace.Question{
		Place: h.place(), Packet: packet(p.client, p.vip), In: h.index("eth1"), Filters: []trace.NetfilterHook{trace.Input},
	})
	must(t, err)
	if took := time.Since(started); took > time.Second {
		t.Errorf("Read took %s", took)
	}
	if want := []string{"filters: no time left"}; !slices.Equal(state.Unread, want) {
		t.Errorf("Unread = %q, want %q", state.Unread, want)
	}
	if got := describe(state.Onward); got != viaDefault(p) {
		t.Errorf("Onward = %s, want %s", got, viaDefault(p))
	}
	close(release)
}

// Dumps that are left in the middle must not answer the next request.
func TestReadHugeTable(t *testing.T) {
	p := plans["ipv6"]
	h, _ := newHost(t, p)
	for i := range 3000 {
		h.route(0, netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb9, byte(i >> 8), byte(i)}), 48).String(), p.gw0, "eth0")
	}
	h.route(unix.RTN_BLACKHOLE, p.clients, "", "")
	ownsVIP(h, p)
	r := newTestReader(t, nil)
	for range 20 {
		state := ask(t, r, trace.Question{Place: h.place(), Packet: packet(p.client, p.vip), In: h.index("eth1")})
		if got, want := describe(state.Back), "EINVAL blackhole "+p.clients+" table main"; got != want {
			t.Fatalf("Back = %s, want %s", got, want)
		}
		if len(state.Gateways) != 1 {
			t.Fatalf("Gateways = %v, want one", state.Gateways)
		}
	}
}

func TestWalkGivesUpOnTooManyRoutes(t *testing.T) {
	p := plans["ipv4"]
	h, _ := newHost(t, p)
	ownsVIP(h, p)
	h.route(unix.RTN_BLACKHOLE, p.clients, "", "")
	h.inside(func() error {
		ctx := context.Background()
		rtnl, err := dialSocket(unix.NETLINK_ROUTE, true)
		if err != nil {
			return err
		}
		defer rtnl.Close()
		r := newReading(trace.Question{Packet: packet(p.client, p.vip)}, nil)
		r.attach(ctx, rtnl)
		r.fib.budget = 2
		got, err := r.resolve(ctx, flowOf(packet(p.vip, p.client), 0, 0))
		if err != nil {
			return err
		}
		if describe(got) != "EINVAL blackhole" {
			t.Errorf("lookup = %s, want what the kernel said", describe(got))
		}
		state, err := r.result()
		if len(state.Unread) != 1 || !strings.Contains(state.Unread[0], errTooManyRoutes.Error()) {
			t.Errorf("Unread = %q, want a word of too many routes", state.Unread)
		}
		return err
	})
}
