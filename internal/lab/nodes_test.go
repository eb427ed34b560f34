package lab_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/replypath/replypath/internal/lab"
	"github.com/replypath/replypath/internal/probe"
	"github.com/replypath/replypath/pkg/trace"
	"github.com/replypath/replypath/pkg/trace/correlate"
)

// watching collects the events of the kernel while the test runs.
type watching struct {
	mu     sync.Mutex
	events []trace.Event
	probe  *probe.Probe
}

func watchKernel(t *testing.T) *watching {
	t.Helper()
	p, err := probe.Open(probe.Config{Tier: probe.TierBase, RingBytes: 8 << 20})
	if err != nil {
		t.Fatal(err)
	}
	w := &watching{probe: p}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- p.Run(ctx, func(ev *trace.Event) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.events = append(w.events, *ev)
		}, func() {})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("read events: %v", err)
		}
		p.Close()
	})
	return w
}

// take returns what the kernel told so far, and forgets it.
func (w *watching) take(t *testing.T) []trace.Event {
	t.Helper()
	if err := w.probe.Flush(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond)
	w.mu.Lock()
	defer w.mu.Unlock()
	events := w.events
	w.events = nil
	return events
}

// TestJoinNodes: each host of a lab is taken for a node with an agent and a clock
// of its own. What the agents know together must be what one agent on all hosts knows.
func TestJoinNodes(t *testing.T) {
	needRoot(t)
	w := watchKernel(t)
	for _, name := range []string{
		"dsr-healthy", "dsr6-healthy", "dsr-tunnel-healthy", "dsr-tunnel6-healthy", "dsr-return-healthy", "nat-healthy", "nat6-healthy",
		"nat-tunnel-healthy", "nat-tunnel6-healthy", "nat-tunnel-udp-healthy", "nat-tunnel6-udp-healthy", "dsr-healthy-snat", "dsr-udp-healthy", "dsr-tunnel-udp-healthy", "dsr-tunnel6-udp-healthy", "dsr-no-route", "dsr-forward-drop", "antrea-healthy",
	} {
		t.Run(name, func(t *testing.T) {
			l, ok := lab.Find(name)
			if !ok {
				t.Fatalf("no lab %s", name)
			}
			if missing := l.Missing(); missing != "" {
				t.Skipf("needs %s", missing)
			}
			events, hosts := traffic(t, w, l)
			nodes := make(map[trace.Netns]string)
			for ns, host := range hosts {
				nodes[ns] = host
			}
			compare(t, "a node each", events, nodes)
			if want, ok := ways[strings.NewReplacer("6", "", "-udp", "").Replace(name)]; ok {
				for _, p := range pathsOf(events, hosts, "", 0) {
					if got := way(&p); got != want {
						t.Errorf("went\n  %s\nwant\n  %s", got, want)
					}
				}
			}
			for i, host := range slices.Sorted(maps.Values(hosts)) { // in turn on two nodes
				for ns := range hosts {
					if hosts[ns] == host {
						nodes[ns] = fmt.Sprintf("node-%d", i%2)
					}
				}
			}
			compare(t, "two nodes", events, nodes)
		})
	}
}

// ways are the hosts that a path goes through, of one exchange over namespaces, NAT and a tunnel.
var ways = map[string]string{
	"dsr-tunnel-healthy": "client router switch lb =vxlan= backend, back: backend switch router client",
	"nat-tunnel-healthy": "client lb =vxlan= node pod, back: pod node =vxlan= lb client",
}

// way names the hosts, which stand for nodes here, and the tunnels.
func way(p *trace.Path) string {
	names := func(hops []trace.Hop) string {
		var list []string
		for _, h := range hops {
			if h.InTunnel != "" {
				list = append(list, "="+h.InTunnel+"=")
			}
			list = append(list, h.Place.Node)
		}
		return strings.Join(list, " ")
	}
	return names(p.Request) + ", back: " + names(p.Reply)
}

// traffic makes a lab's connections, and returns what the kernel told of its hosts.
func traffic(t *testing.T, w *watching, l lab.Lab) ([]trace.Event, map[trace.Netns]string) {
	t.Helper()
	n, err := lab.Up(t.Context(), l, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Down()
	hosts := make(map[trace.Netns]string)
	for host, name := range n.Namespaces() {
		var stat unix.Stat_t
		if err := unix.Stat("/run/netns/"+name, &stat); err != nil {
			t.Fatal(err)
		}
		hosts[trace.Netns(stat.Ino)] = host
	}
	w.take(t)
	if err := n.Traffic(t.Context()); err != nil {
		t.Fatal(err)
	}
	events := slices.DeleteFunc(w.take(t), func(ev trace.Event) bool { return hosts[ev.Netns] == "" })
	return events, hosts
}

// compare feeds the events to one table and to one for each node.
func compare(t *testing.T, title string, events []trace.Event, nodes map[trace.Netns]string) {
	t.Helper()
	names := slices.Sorted(maps.Values(nodes))
	names = slices.Compact(names)
	views := make([]correlate.View, len(names))
	for i, node := range names {
		ahead := time.Duration(len(names)/2-i) * 7 * time.Minute
		views[i].Paths = pathsOf(events, nodes, node, ahead)
	}
	exchanges, _ := correlate.Join(views, nil)
	if len(exchanges) == 0 {
		t.Errorf("%s: no exchange", title)
	}
	var got, want []string
	for _, e := range exchanges {
		got = append(got, drawn(&e.Path))
	}
	for _, p := range pathsOf(events, nodes, "", 0) {
		want = append(want, drawn(&p))
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("%s: joined\n  %s\none agent saw\n  %s", title, strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}

// pathsOf are the paths that an agent on a node makes of its events; "": on all nodes.
func pathsOf(events []trace.Event, nodes map[trace.Netns]string, node string, ahead time.Duration) []trace.Path {
	table := correlate.New(correlate.Config{Idle: time.Hour, Linger: time.Hour, Place: func(ns trace.Netns, _ time.Time) trace.Place {
		return trace.Place{Node: nodes[ns], Netns: ns}
	}})
	for _, ev := range events {
		if node == "" || nodes[ev.Netns] == node {
			ev.Time = ev.Time.Add(ahead)
			table.Add(&ev)
		}
	}
	table.Flush()
	last := make(map[string]trace.Path) // what is handed out later replaces what was before
	var order []string
	for _, p := range table.Done() {
		key := fmt.Sprint(p.Connection, p.First)
		if _, ok := last[key]; !ok {
			order = append(order, key)
		}
		last[key] = p
	}
	var paths []trace.Path
	for _, key := range order {
		paths = append(paths, last[key])
	}
	return paths
}

func drawn(p *trace.Path) string {
	text := fmt.Sprintf("%s answered %v, %d requests:", p.Connection, p.Answered, p.Requests)
	for _, h := range p.Request {
		text += fmt.Sprintf(" %d(%s%s>%s%s %s)", h.Place.Netns, h.InTunnel, h.In.Name, h.OutTunnel, h.Out.Name, h.Tuple.Dst)
	}
	text += " back"
	for _, h := range p.Reply {
		text += fmt.Sprintf(" %d(%s>%s %s)", h.Place.Netns, h.In.Name, h.Out.Name, h.Tuple.Src)
	}
	return text
}
