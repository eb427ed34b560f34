package render_test

import (
	"flag"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/timestamppb"

	tracev1 "github.com/replypath/replypath/api/trace/v1"
)

var update = flag.Bool("update", false, "write the golden files in testdata")

// golden compares got with testdata/name, or writes it with -update.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s differs (-want +got); if that is right: go test ./internal/render -update\n%s", name, diff)
	}
}

// at is a moment of the day on which all faults of these tests happened.
func at(clock string) *timestamppb.Timestamp {
	parsed, err := time.Parse("2006-01-02 15:04:05.000", "2026-11-20 "+clock)
	if err != nil {
		panic(err)
	}
	return timestamppb.New(parsed)
}

func hop(netns string, inode uint32, in, out, src, dst string) *tracev1.Hop {
	return &tracev1.Hop{Netns: netns, NetnsInode: inode, InDevice: in, OutDevice: out, Source: src, Destination: dst,
		Time: at("12:00:01.104"), Count: 3}
}

const (
	client = "198.51.100.7:41822"
	vip    = "203.0.113.10:80"
)

// dsrRequest is the way of a request through a load balancer to the VIP's owner.
func dsrRequest() []*tracev1.Hop {
	return []*tracev1.Hop{
		hop("client", 101, "", "eth0", client, vip),
		hop("router", 102, "lan0", "net0", client, vip),
		hop("lb", 103, "eth0", "eth0", client, vip),
		hop("backend", 104, "eth0", "", client, vip),
	}
}

func noRoute() *tracev1.Finding {
	return &tracev1.Finding{
		Id: "reply-no-route", Severity: "error", Confidence: "certain", Direction: tracev1.Direction_REPLY,
		Summary: "backend has no route back to 198.51.100.7",
		Cause: "The VIP's owner answers the client directly (DSR), but its table main has no route that matches 198.51.100.7 " +
			"and no default route, so the SYN-ACK was never built.",
		Fix: []string{
			"# 10.2.0.1 is where the request came from; check that it may carry the replies",
			"ip netns exec backend ip route add default via 10.2.0.1 dev eth0",
		},
		Verify: []string{"ip netns exec backend ip route get 198.51.100.7 from 203.0.113.10"},
		Where:  &tracev1.Where{Node: "worker-1", Netns: "backend", NetnsInode: 104, Device: "eth0", Hook: "fib_table_lookup"},
		Path: &tracev1.Path{Protocol: "tcp", Client: client, Server: vip, Request: dsrRequest(), Requests: 3,
			FirstSeen: at("12:00:01.104"), LastSeen: at("12:00:04.176"), Process: &tracev1.Process{Pid: 4711, Comm: "curl"}},
		Evidence: []*tracev1.Evidence{
			{Time: at("12:00:01.104"), Text: "SYN came in on eth0 of backend"},
			{Time: at("12:00:01.104"), Text: "route lookup 203.0.113.10 -> 198.51.100.7 failed: no match in table main"},
			{Time: at("12:00:01.305"), Text: "no SYN-ACK left backend within 200ms"},
		},
		Count: 3, FirstSeen: at("12:00:01.104"), LastSeen: at("12:00:03.604"),
		Connections: []*tracev1.Connection{{Protocol: "tcp", Client: client, Server: vip, Count: 3, LastSeen: at("12:00:03.604")}},
	}
}

func rpFilter() *tracev1.Finding {
	request := dsrRequest()
	return &tracev1.Finding{
		Id: "rp-filter-drop", Severity: "error", Confidence: "certain", Direction: tracev1.Direction_REPLY,
		Summary: "router drops the reply: it came in by ret0, and router would send to 203.0.113.10 by lan0",
		Cause:   "net.ipv4.conf.ret0.rp_filter is 1 (strict): a packet is taken only from the device by which its source is reached.",
		Fix:     []string{"ip netns exec router sysctl -w net.ipv4.conf.ret0.rp_filter=2"},
		Verify:  []string{"ip netns exec router sysctl net.ipv4.conf.all.rp_filter net.ipv4.conf.ret0.rp_filter"},
		Where:   &tracev1.Where{Node: "worker-1", Netns: "router", NetnsInode: 102, Device: "ret0", Hook: "kfree_skb"},
		Path: &tracev1.Path{Protocol: "tcp", Client: client, Server: vip, Request: request, Requests: 4, Reply: []*tracev1.Hop{
			hop("backend", 104, "", "eth0", vip, client), hop("router", 102, "ret0", "", vip, client),
		}},
		Evidence: []*tracev1.Evidence{{Time: at("12:00:01.106"), Text: "SYN-ACK dropped on ret0: IP_RPFILTER in ip_rcv_finish_core"}},
		Count:    2113, FirstSeen: at("12:00:01.106"), LastSeen: at("12:04:51.106"),
		Connections: manyConnections(), ConnectionsOmitted: 300,
	}
}

func manyConnections() []*tracev1.Connection {
	list := []*tracev1.Connection{{Protocol: "tcp", Client: client, Server: vip, Count: 4}}
	for _, c := range []string{"198.51.100.7:41823", "198.51.100.7:41830", "198.51.100.9:50000", "198.51.100.7:41831", "198.51.100.7:41832",
		"198.51.100.7:41833", "198.51.100.7:41834", "198.51.100.7:41835", "198.51.100.10:1", "198.51.100.11:1", "198.51.100.11:2"} {
		list = append(list, &tracev1.Connection{Protocol: "tcp", Client: c, Server: vip, Count: 1})
	}
	return list
}

func filterDrop() *tracev1.Finding {
	return &tracev1.Finding{
		Id: "netfilter-drop", Severity: "error", Confidence: "likely", Direction: tracev1.Direction_REQUEST,
		Summary: "a rule on node-a drops the request",
		Cause:   `Table inet guard, chain fw, handle 7: tcp dport 8080 drop comment "no web from pods"`,
		Fix:     []string{"# decide whether the rule is meant; if not:", "ip netns exec node-a nft delete rule inet guard fw handle 7"},
		Verify:  []string{"ip netns exec node-a nft -a list chain inet guard fw"},
		Where:   &tracev1.Where{Node: "worker-1", NetnsInode: 202, Device: "cni0", Hook: "FORWARD"},
		Path: &tracev1.Path{Protocol: "tcp", Client: "10.244.0.5:50312", Server: "10.96.0.20:80", Requests: 1, Request: []*tracev1.Hop{
			{NetnsInode: 201, OutDevice: "eth0", Source: "10.244.0.5:50312", Destination: "10.96.0.20:80", Workload: "shop/cart-0"},
			hop("node-a", 202, "cni0", "", "10.244.0.5:50312", "10.244.1.53:8080"),
		}},
		Evidence: []*tracev1.Evidence{{Time: at("12:00:01.104"), Text: "SYN dropped: NETFILTER_DROP in nft_do_chain"}},
		Count:    1, FirstSeen: at("12:00:01.104"), LastSeen: at("12:00:01.104"),
	}
}

func refused6() *tracev1.Finding {
	const client, server = "[2001:db8:1::7]:41822", "[2001:db8:203::10]:8443"
	return &tracev1.Finding{
		Id: "port-not-listening", Severity: "error", Confidence: "certain", Direction: tracev1.Direction_REQUEST,
		Summary: "nobody listens on port 8443 of app", Cause: "nobody listens on port 8443 of app: its TCP listeners are on 8080.",
		Verify: []string{"ip netns exec app ss -ltn 'sport = :8443'"},
		Where:  &tracev1.Where{Node: "worker-1", Netns: "app", NetnsInode: 302, Device: "eth0"},
		Path: &tracev1.Path{Protocol: "tcp", Client: client, Server: server, Requests: 1, Answered: true,
			Request: []*tracev1.Hop{hop("cl", 301, "", "eth0", client, server), hop("app", 302, "eth0", "", client, server)},
			Reply:   []*tracev1.Hop{hop("app", 302, "", "eth0", server, client), hop("cl", 301, "eth0", "", server, client)}},
		Count: 1,
	}
}

// outside is a finding about traffic whose client was not seen, that went on past the fault.
func outside() *tracev1.Finding {
	return &tracev1.Finding{
		Id: "reply-wrong-source", Severity: "warning", Confidence: "possible", Direction: tracev1.Direction_REPLY,
		Summary: "the reply leaves with a source that the client did not ask",
		Where:   &tracev1.Where{Netns: "lb", NetnsInode: 103},
		Path: &tracev1.Path{Protocol: "tcp", Client: client, Server: vip, Requests: 2,
			Request: []*tracev1.Hop{hop("lb", 103, "eth0", "be0", client, "10.2.0.20:8080"), hop("backend", 104, "eth0", "", client, "10.2.0.20:8080")},
			Reply: []*tracev1.Hop{hop("backend", 104, "", "eth0", "10.2.0.20:8080", client), hop("lb", 103, "be0", "eth0", "10.2.0.20:8080", client),
				hop("router", 102, "net0", "lan0", "10.2.0.20:8080", client)}},
		Count: 2, FirstSeen: at("12:00:01.104"), LastSeen: at("12:00:01.145"),
	}
}

// hostile is a finding whose every text tries to fool a terminal.
func hostile() *tracev1.Finding {
	f := noRoute()
	evil := "\x1b[2J\x1b]0;owned\x07\u202egnp.exe\r\nOK\u009b31m\x7f\u2028\U000e0041"
	f.Id, f.Confidence, f.Summary, f.Cause = "reply-no-route", evil, evil+" summary", evil+" cause"
	f.Fix, f.Verify = []string{"ip link show 'et\x1bh0'"}, []string{"# " + evil}
	f.Where = &tracev1.Where{Node: evil, Netns: "ba\tck", NetnsInode: 104, Device: "e\x1b[31m0", Hook: evil, Workload: evil}
	f.Path.Request[3].Netns = "b\x1b[1mad"
	f.Path.Request[1].InDevice = "\u202e0nal"
	f.Path.Process.Comm = "\x1b[5mcurl"
	f.Path.Client = "198.51.100.7\n:1"
	f.Evidence = []*tracev1.Evidence{{Text: evil}, {Time: at("12:00:01.104"), Text: "no \x00 here"}}
	f.Connections = []*tracev1.Connection{{Protocol: evil, Client: evil, Server: evil}}
	return f
}
