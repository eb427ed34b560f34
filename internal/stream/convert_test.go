package stream

import (
	"encoding/json"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	tracev1 "github.com/replypath/replypath/api/trace/v1"
	"github.com/replypath/replypath/pkg/trace"
)

func fullFinding() trace.Finding {
	c := trace.Tuple{Protocol: trace.TCP, Src: netip.MustParseAddrPort("[2001:db8::7]:41822"), Dst: netip.MustParseAddrPort("[2001:db8:1::80]:80")}
	return trace.Finding{
		ID: "reply-no-route", Severity: trace.Error, Confidence: trace.Certain, Direction: trace.Reply,
		Summary: "s", Cause: "c", Fix: []string{"f"}, Verify: []string{"v"},
		Where: trace.Where{Node: "n", Place: trace.Place{Netns: 7, Name: "backend", Workload: "shop/web-0"}, Device: "eth0", Hook: "h"},
		Path: trace.Path{
			Protocol: trace.TCP, Client: c.Src, Server: c.Dst, Connection: c, First: at(0), Last: at(1), Requests: 3, Answered: true,
			Process: trace.Process{PID: 5, PGID: 4, Comm: "curl"},
			Request: []trace.Hop{{Place: trace.Place{Netns: 7, Name: "backend"}, In: trace.Device{Index: 2, Name: "eth0"}, Tuple: c, First: at(0), Count: 3}},
			Reply: []trace.Hop{{
				Place: trace.Place{Node: "n"}, Out: trace.Device{Index: 2, Name: "vx0"}, OutTunnel: "vxlan", Tuple: c.Reverse(), Arrived: c, TTL: 63, Bridged: true,
			}},
			Sequence: 4000000000, Established: true,
		},
		Evidence: []trace.Evidence{{Time: at(0.104), Text: "SYN in on eth0"}},
		Count:    3, FirstSeen: at(0), LastSeen: at(1),
		Connections: []trace.Connection{{Tuple: c, Count: 3, Last: at(1)}},
		Omitted:     2,
	}
}

// TestProtoFinding compares the whole of the contract's JSON.
func TestProtoFinding(t *testing.T) {
	f := fullFinding()
	got, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(ProtoFinding(&f))
	if err != nil {
		t.Fatal(err)
	}
	const want = `{
		"id": "reply-no-route", "severity": "error", "confidence": "certain", "direction": "REPLY",
		"summary": "s", "cause": "c", "fix": ["f"], "verify": ["v"],
		"where": {"node": "n", "netns": "backend", "netns_inode": 7, "device": "eth0", "hook": "h", "workload": "shop/web-0"},
		"path": {
			"protocol": "tcp", "client": "[2001:db8::7]:41822", "server": "[2001:db8:1::80]:80",
			"request": [{"netns": "backend", "netns_inode": 7, "in_device": "eth0", "source": "[2001:db8::7]:41822",
				"destination": "[2001:db8:1::80]:80", "time": "2026-03-01T12:00:00Z", "count": 3}],
			"reply": [{"out_device": "vx0", "source": "[2001:db8:1::80]:80", "destination": "[2001:db8::7]:41822", "node": "n", "ttl": 63,
				"arrived_source": "[2001:db8::7]:41822", "arrived_destination": "[2001:db8:1::80]:80", "bridged": true, "out_tunnel": "vxlan"}],
			"sequence": 4000000000, "established": true,
			"first_seen": "2026-03-01T12:00:00Z", "last_seen": "2026-03-01T12:00:01Z", "requests": 3, "answered": true,
			"process": {"pid": 5, "comm": "curl"}},
		"evidence": [{"time": "2026-03-01T12:00:00.104Z", "text": "SYN in on eth0"}],
		"count": 3, "first_seen": "2026-03-01T12:00:00Z", "last_seen": "2026-03-01T12:00:01Z",
		"connections": [{"protocol": "tcp", "client": "[2001:db8::7]:41822", "server": "[2001:db8:1::80]:80", "count": 3, "last_seen": "2026-03-01T12:00:01Z"}],
		"connections_omitted": 2
	}`
	if diff := cmp.Diff(decode(t, []byte(want)), decode(t, got)); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

// TestTraceFinding: who joins answers must lose nothing of them.
func TestTraceFinding(t *testing.T) {
	f := fullFinding()
	want := ProtoFinding(&f)
	back := TraceFinding(want)
	if got := ProtoFinding(&back); !proto.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if c := back.Connections[0]; c.Tuple != f.Connections[0].Tuple || back.Path.Connection != c.Tuple {
		t.Errorf("connection %v", c)
	}
	empty := TraceFinding(nil)
	if got := ProtoFinding(&empty); got.GetPath().GetClient() != "" || got.GetFirstSeen() != nil {
		t.Errorf("of nothing: %v", got)
	}
}

func decode(t *testing.T, text []byte) any {
	t.Helper()
	var v any
	if err := json.Unmarshal(text, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

// TestProtoHostile: bytes that are not UTF-8 must not make the answer fail.
func TestProtoHostile(t *testing.T) {
	const bad = "a\xff\xfeb\x1b"
	f := trace.Finding{
		ID: bad, Summary: bad, Cause: bad, Fix: []string{bad}, Verify: []string{bad},
		Where:    trace.Where{Node: bad, Place: trace.Place{Name: bad, Workload: bad}, Device: bad, Hook: bad},
		Evidence: []trace.Evidence{{Text: bad}},
		Path: trace.Path{
			Process: trace.Process{PID: 1, Comm: bad},
			Request: []trace.Hop{{Place: trace.Place{Name: bad, Workload: bad}, In: trace.Device{Name: bad}, Out: trace.Device{Name: bad}}},
		},
	}
	if _, err := proto.Marshal(ProtoFinding(&f)); err != nil {
		t.Error(err)
	}
	if got := ProtoFinding(&f).GetSummary(); got != "a\uFFFDb\x1b" {
		t.Errorf("summary %q", got) // escaping is for whoever renders it
	}
	node := protoNode(Status{Node: bad, Version: bad, Kernel: bad, Tier: bad, Hooks: []HookStatus{{bad, bad, bad, bad}}})
	node.Losses = protoLosses([]Loss{{bad, 1 << 40}})
	if _, err := proto.Marshal(node); err != nil {
		t.Error(err)
	}
	if got := node.GetLosses()[0].GetCount(); got != 1<<32-1 {
		t.Errorf("2^40 losses are told as %d", got)
	}
}

func TestProtoZero(t *testing.T) {
	got := ProtoPath(&trace.Path{})
	if got.GetClient() != "" || got.GetFirstSeen() != nil || got.GetProcess() != nil {
		t.Errorf("the zero path: %v", got)
	}
	if got := timestamp(time.Time{}); got != nil {
		t.Errorf("the zero time: %v", got)
	}
	if got := protoDirection(trace.Request); got != tracev1.Direction_REQUEST {
		t.Errorf("request: %v", got)
	}
}
