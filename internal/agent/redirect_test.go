package agent

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/replypath/replypath/internal/netstate"
	"github.com/replypath/replypath/internal/recorder"
	"github.com/replypath/replypath/pkg/trace"
)

func made(ns trace.Netns, pid uint32, to string, at time.Time, taken bool) *trace.Path {
	t := trace.Tuple{Protocol: trace.TCP, Src: netip.MustParseAddrPort("10.0.0.5:40000"), Dst: netip.MustParseAddrPort(to)}
	seen := t
	if taken {
		seen.Dst = netip.MustParseAddrPort("127.0.0.1:15001")
	}
	return &trace.Path{Protocol: trace.TCP, Client: t.Src, Server: t.Dst, Connection: t, First: at, Last: at, Process: trace.Process{PID: pid},
		Request: []trace.Hop{{Place: trace.Place{Netns: ns}, Tuple: seen, Count: 1}}}
}

// However many connections there are, few questions are asked.
func TestRedirectWatchIsCheap(t *testing.T) {
	w := newRedirectWatch(nil, nil)
	now := time.Unix(1000, 0)
	asked := 0
	for i := range 100000 {
		asked += len(w.cases(made(7, 1, "203.0.113.9:80", now.Add(time.Duration(i)*time.Millisecond), i%2 == 0)))
	}
	if asked == 0 || asked > 20 {
		t.Errorf("%d questions about 100000 connections in 100 s", asked)
	}
	for i := range 10000 { // of as many namespaces
		w.cases(made(trace.Netns(100+i), 1, "203.0.113.9:80", now, false))
	}
	if len(w.spaces) > maxSpaces {
		t.Errorf("%d namespaces are remembered", len(w.spaces))
	}
}

func TestRedirectWatchWaitsAndForgetsNothing(t *testing.T) {
	w := newRedirectWatch(nil, nil)
	now := time.Unix(1000, 0)
	w.at, w.spent = now, time.Minute
	if n := len(w.cases(made(7, 1, "203.0.113.9:80", now, false))); n != 0 {
		t.Fatalf("%d questions, and no time for one", n)
	}
	if n := len(w.overdue(now, false)); n != 0 {
		t.Errorf("%d questions by now", n)
	}
	if n := len(w.overdue(now, true)); n != 1 {
		t.Errorf("%d questions waited", n)
	}
}

func TestStormIsTheClients(t *testing.T) {
	w := newRedirectWatch(nil, nil)
	now := time.Unix(1000, 0)
	client := made(7, 1, "203.0.113.9:80", now, true)
	first := w.cases(client)
	for i := range 40 {
		w.cases(made(7, 2, "203.0.113.9:80", now.Add(time.Duration(i)*time.Millisecond), true))
	}
	if len(first) != 1 {
		t.Fatalf("%d questions", len(first))
	}
	w.spaces[7].proxies[2] = now
	w.storm(&first[0])
	if first[0].Repeats != 40 || first[0].Path.Process.PID != 1 {
		t.Errorf("%d times, of process %d", first[0].Repeats, first[0].Path.Process.PID)
	}
}

// A namespace that redirects nothing is left alone for a while, unless its rules could not be read.
func TestPlainNamespaceIsLeftAlone(t *testing.T) {
	now := time.Unix(1000, 0)
	for _, tt := range []struct {
		name string
		r    trace.Redirection
		asks int
	}{
		{"nothing redirected", trace.Redirection{Families: []trace.RedirectFamily{{Used: true}}}, 0},
		{"rules not read", trace.Redirection{Families: []trace.RedirectFamily{{Used: true, Unread: true}}}, 1},
		{"something not read", trace.Redirection{Unread: []string{"sockets"}}, 1},
		{"one port redirected", trace.Redirection{Asked: []trace.RedirectLeg{{Taken: true}}}, 1},
	} {
		w := newRedirectWatch(nil, nil)
		w.cases(made(7, 1, "203.0.113.9:80", now, false))
		tt.r.ReadAt = now
		w.spaces[7].learn(&tt.r)
		later := now.Add(time.Second)
		if n := len(w.cases(made(7, 1, "203.0.113.9:443", later, false))); n != tt.asks {
			t.Errorf("%s: %d questions, want %d", tt.name, n, tt.asks)
		}
		if n := len(w.cases(made(7, 1, "203.0.113.9:8443", now.Add(plainPause), false))); n != 1 {
			t.Errorf("%s: %d questions after the pause, want 1", tt.name, n)
		}
	}
}

// A question about a namespace to which no way is known yet waits for one, not for ever.
func TestQuestionsWaitForTheirNamespace(t *testing.T) {
	w := newRedirectWatch(nil, nil)
	now := time.Unix(1000, 0)
	c := w.cases(made(7, 1, "203.0.113.9:80", now, false))[0]
	for at := now; at.Before(now.Add(holdTime)); at = at.Add(holdInterval) {
		if kept, _ := w.hold(&c, at); !kept {
			t.Fatalf("given up after %v", at.Sub(now))
		}
		if n := len(w.release(at, false)); n != 1 {
			t.Fatalf("%d questions asked again after %v", n, at.Sub(now))
		}
	}
	if kept, patient := w.hold(&c, now.Add(2*holdTime)); kept || patient {
		t.Error("it waits for ever")
	}
	for range 3 * maxWaiting {
		w.hold(&c, now)
	}
	if n := len(w.release(now, true)); n != maxWaiting {
		t.Errorf("%d questions wait, of at most %d", n, maxWaiting)
	}
}

// Names and processes are looked through before a question is given up: here a namespace
// that nobody had asked about, with a process and no name.
func TestQuestionFindsItsNamespace(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	places, err := netstate.NewDirectory()
	if err != nil {
		t.Fatal(err)
	}
	i := newInvestigator("node", netstate.NewReader(places, nil), places, recorder.New(recorder.Config{}), slog.New(slog.DiscardHandler))
	defer i.reader.Close()
	sleeper := exec.Command("sleep", "60")
	sleeper.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if err := sleeper.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { sleeper.Process.Kill(); sleeper.Wait() }()
	var stat syscall.Stat_t
	if err := syscall.Stat(fmt.Sprintf("/proc/%d/ns/net", sleeper.Process.Pid), &stat); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go i.Run(ctx)
	for _, c := range i.redirects.cases(made(trace.Netns(stat.Ino), uint32(sleeper.Process.Pid), "203.0.113.9:80", time.Now(), false)) {
		i.submit(c)
	}
	i.wait(ctx)
	if s := i.redirects.spaces[trace.Netns(stat.Ino)]; s == nil || s.plain.IsZero() {
		t.Error("the namespace was not asked")
	}
	if n := i.unread.Load(); n != 0 {
		t.Errorf("%d questions given up", n)
	}
}
