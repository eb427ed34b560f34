package recorder

import (
	"math/rand/v2"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"github.com/replypath/replypath/pkg/trace"
)

// answeredQuery is one of many that are much alike.
func answeredQuery(r *rand.Rand, n int, places []*trace.Place) *trace.Exchange {
	client := netip.AddrPortFrom(netip.MustParseAddr("10.244.0.7"), uint16(r.Uint32()))
	server, resolver := netip.MustParseAddrPort("10.96.0.10:53"), netip.MustParseAddrPort("10.244.1.53:53")
	if n%7 == 0 {
		client = netip.AddrPortFrom(netip.MustParseAddr("fd00::7"), client.Port())
		server = netip.MustParseAddrPort("[::ffff:10.96.0.10]:53")
	}
	x := &trace.Exchange{
		Number: uint64(n), Protocol: trace.UDP, Client: client, Server: server, Responder: resolver, ID: uint16(r.Uint32()), Type: 28, Class: 1,
		Rcode: uint16(r.IntN(6)), RD: n%2 == 0, Name: []string{"www.test.", `a\.b.test.`, "."}[n%3], First: at(float64(n) / 1000), Latency: time.Duration(r.IntN(1e9)),
		Attempts: uint32(1 + r.IntN(3)), Repeats: uint64(r.IntN(2)) * r.Uint64(), Twin: uint64(r.IntN(n + 1)), Outcome: trace.Answered, Stage: trace.StageHome, Via: trace.ViaNAT,
		Process:  trace.Process{PID: uint32(r.IntN(99999)), PGID: 7, Comm: []string{"", "getent", "a comm"}[n%3]},
		Response: make([]byte, 40+r.IntN(100)), Gone: n%11 == 0,
		Tuples: []trace.Tuple{{Protocol: trace.UDP, Src: client, Dst: server}, {Protocol: trace.UDP, Src: client, Dst: resolver}},
	}
	if n%5 == 0 {
		x.Outcome = trace.Failed
	}
	for i := range x.Response {
		x.Response[i] = byte(r.Uint32())
	}
	x.ResponseLength = uint32(len(x.Response)) + uint32(n%2)*1000
	x.Last = x.First.Add(x.Latency)
	for i := range 1 + n%9 {
		x.Sightings = append(x.Sightings, trace.Sighting{
			Time: x.First.Add(time.Duration(i) * 1234), Place: places[(i+n%2)%len(places)], Device: trace.Device{Index: uint32(2 + i), Name: "eth0"},
			Count: uint32(1 + r.IntN(2)), Tuple: uint8(i / 2 % 2), Reply: i >= 4, Transmit: i%2 == 0, OtherHost: n%13 == 0, Made: i%4 == 0,
		})
	}
	return x
}

// What is packed is the same when it is unpacked, and takes little.
func TestPacked(t *testing.T) {
	places := []*trace.Place{{Netns: 1, Name: "client"}, {Netns: 2, Host: true}, {Netns: 3, Workload: "kube-system/coredns"}}
	r, now := newRecorder(Config{MaxBytes: 8 << 20})
	random := rand.New(rand.NewPCG(1, 2))
	var want []*trace.Exchange
	for n := range 5000 {
		x := answeredQuery(random, n, places)
		want = append(want, x)
		r.AddExchange(x)
	}
	got := r.Exchanges(time.Time{})
	if len(got) != len(want) {
		t.Fatalf("%d of %d", len(got), len(want))
	}
	for i := range got {
		x := *got[i]
		for _, at := range []*time.Time{&x.First, &x.Last} {
			if !at.Equal(map[*time.Time]time.Time{&x.First: want[i].First, &x.Last: want[i].Last}[at]) {
				t.Fatalf("%d: at %v", i, at)
			}
		}
		x.First, x.Last = want[i].First, want[i].Last
		for j := range x.Sightings {
			if !x.Sightings[j].Time.Equal(want[i].Sightings[j].Time) {
				t.Fatalf("%d: sighting at %v", i, x.Sightings[j].Time)
			}
			x.Sightings[j].Time = want[i].Sightings[j].Time
		}
		if !reflect.DeepEqual(&x, want[i]) {
			t.Fatalf("%d:\n%+v\n%+v", i, x, want[i])
		}
	}
	if s := r.Stats(); len(r.exchanges.entries) != 0 || s.Bytes > 5000*320 {
		t.Errorf("%d bytes, and %d not packed", s.Bytes, len(r.exchanges.entries))
	}
	now.now = at(3600)
	if s := r.Stats(); len(r.Exchanges(time.Time{})) != 0 || r.exchanges.bytes != 0 || len(r.exchanges.chunks) != 0 {
		t.Errorf("%+v, %d bytes left", s, r.exchanges.bytes)
	}
}

// What cannot be packed is kept all the same.
func TestNotPacked(t *testing.T) {
	r, _ := newRecorder(Config{MaxBytes: 8 << 20})
	places := []*trace.Place{{Netns: 1}}
	random := rand.New(rand.NewPCG(1, 2))
	for n, change := range []func(*trace.Exchange){
		func(x *trace.Exchange) { x.Drop = &trace.Drop{Reason: "NO_SOCKET"} },
		func(x *trace.Exchange) { x.Client = netip.MustParseAddrPort("[fe80::1%eth0]:53") },
		func(x *trace.Exchange) { x.Sightings[0].Place = nil },
		func(x *trace.Exchange) { x.Response = make([]byte, 60000) },
	} {
		x := answeredQuery(random, n, places)
		change(x)
		r.AddExchange(x)
		if all := r.Exchanges(time.Time{}); len(all) != n+1 || all[n] != x {
			t.Errorf("%d: %d kept", n, len(all))
		}
	}
}
