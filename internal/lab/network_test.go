package lab

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netns"
)

// envHold makes this test binary build a lab and hold it until it is killed.
const envHold = "REPLYPATH_TEST_HOLD"

func TestMain(m *testing.M) {
	if name := os.Getenv(envHold); name != "" {
		hold(name)
	}
	if slices.Equal(os.Args[1:], []string{"lab", "serve"}) { // what Detach starts
		if err := Serve(context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// hold builds a lab, prints its namespaces and waits.
func hold(name string) {
	l, _ := Find(name)
	n, err := Up(context.Background(), l, nil)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(n.id)
	select {}
}

// needRoot skips where there is no root at all.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: creates network namespaces")
	}
}

// up builds a lab for the time of a test, and checks afterwards that nothing is left.
func up(t *testing.T, name string) *Network {
	t.Helper()
	l, ok := Find(name)
	if !ok {
		t.Fatalf("no lab %s", name)
	}
	begun := time.Now()
	n, err := Up(t.Context(), l, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("built in %v", time.Since(begun).Round(time.Millisecond))
	t.Cleanup(func() {
		if err := n.Down(); err != nil {
			t.Error(err)
		}
		checkGone(t, n.id)
		if err := n.Down(); err != nil {
			t.Errorf("second Down: %v", err)
		}
	})
	return n
}

// checkGone checks that a network left no name, mount or process.
func checkGone(t *testing.T, id string) {
	t.Helper()
	if left, _ := filepath.Glob(filepath.Join(runDir, id+"*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(mounts, []byte(id)) {
		t.Errorf("a mount of %s is left", id)
	}
	environs, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, path := range environs {
		if environ, err := os.ReadFile(path); err == nil && bytes.Contains(environ, []byte(envNetwork+"="+id)) {
			t.Errorf("process of %s is left: %s", id, path)
		}
	}
}

// TestLabs builds every lab and checks what its client sees. That a fault
// breaks nothing but what it says is told by the healthy twins, and by the
// end-to-end test. The labs mostly wait, so that many run at once.
func TestLabs(t *testing.T) {
	needRoot(t)
	slots := make(chan struct{}, 16)
	type result struct {
		outcome Outcome
		id      string
		err     error
	}
	results := map[string]chan result{}
	for _, l := range All() {
		done := make(chan result, 1)
		results[l.Name] = done
		go func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			n, err := Up(t.Context(), l, nil)
			if err != nil {
				done <- result{err: err}
				return
			}
			err = n.Traffic(t.Context())
			done <- result{n.Outcome(), n.id, errors.Join(err, n.Down())}
		}()
	}
	for _, l := range All() {
		t.Run(l.Name, func(t *testing.T) {
			r := <-results[l.Name]
			if missing := l.Missing(); missing != "" {
				t.Skipf("needs %s", missing)
			}
			if r.err != nil {
				t.Fatal(r.err)
			}
			if !l.Outcome.Fits(r.outcome) {
				t.Errorf("client sees %q, want %q", r.outcome, l.Outcome)
			}
			checkGone(t, r.id)
		})
	}
}

func TestBuildTime(t *testing.T) {
	needRoot(t)
	l, _ := Find("asym-healthy")
	best := time.Hour
	for range 3 {
		begun := time.Now()
		n, err := Up(t.Context(), l, nil)
		if err != nil {
			t.Fatal(err)
		}
		best = min(best, time.Since(begun))
		if err := n.Down(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("best of three: %v", best)
	if best > time.Second {
		t.Errorf("the largest lab takes %v to build, want less than a second", best)
	}
}

func TestSettings(t *testing.T) {
	needRoot(t)
	n := up(t, "dsr-healthy")
	for _, c := range []struct{ host, name, want string }{
		{"router", "net/ipv4/ip_forward", "1"},
		{"router", "net/ipv4/conf/lan0/forwarding", "1"},
		{"backend", "net/ipv4/ip_forward", "0"},
		{"backend", "net/ipv4/conf/eth0/rp_filter", "0"},
		{"backend", "net/ipv4/conf/all/rp_filter", "0"},
		{"backend", "net/ipv4/conf/all/arp_announce", "2"},
		{"lb", "net/ipv4/conf/eth0/send_redirects", "0"},
		{"backend", "net/ipv6/conf/eth0/accept_dad", "0"},
	} {
		err := enter(n.hosts[c.host].ns, func() error {
			got, err := os.ReadFile("/proc/sys/" + c.name)
			if strings.TrimSpace(string(got)) != c.want {
				t.Errorf("%s: %s = %s, want %s", c.host, c.name, got, c.want)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
}

// TestHostUntouched checks that a lab leaves no device and no thread elsewhere.
func TestHostUntouched(t *testing.T) {
	needRoot(t)
	before, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	n := up(t, "dsr-tunnel-healthy")
	if err := n.Traffic(t.Context()); err != nil {
		t.Fatal(err)
	}
	after, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	names := func(all []net.Interface) (names []string) {
		for _, i := range all {
			names = append(names, i.Name)
		}
		return names
	}
	if !slices.Equal(names(before), names(after)) {
		t.Errorf("devices of the host: %v, then %v", names(before), names(after))
	}
	own, err := netns.GetFromPid(1)
	if err != nil {
		own, err = netns.Get()
	}
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	threads, err := filepath.Glob("/proc/self/task/*/ns/net")
	if err != nil || len(threads) == 0 {
		t.Fatalf("list threads: %v", err)
	}
	first, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	inside := map[string]bool{}
	for _, h := range n.hosts {
		inside[strings.Split(h.ns.UniqueId(), ":")[1]] = true
	}
	for _, path := range threads {
		at, err := os.Readlink(path)
		if err == nil && at != first && inside[strings.Trim(at[len("net:["):], "]")] {
			t.Errorf("%s is still in a lab: %s", path, at)
		}
	}
}

func TestUpTwice(t *testing.T) {
	needRoot(t)
	var group sync.WaitGroup
	for range 2 {
		n := up(t, "dsr-healthy")
		group.Go(func() {
			if err := n.Traffic(t.Context()); err != nil {
				t.Error(err)
			}
			if n.Outcome() != Connected {
				t.Errorf("client sees %q beside its twin", n.Outcome())
			}
		})
	}
	group.Wait()
}

// cancelAfter ends a context once it has been asked n times.
type cancelAfter struct {
	context.Context
	mu     sync.Mutex
	n      int
	cancel context.CancelFunc
}

func (c *cancelAfter) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n--; c.n < 0 {
		c.cancel()
	}
	return c.Context.Err()
}

func TestCancelMidBuild(t *testing.T) {
	needRoot(t)
	l, _ := Find("dsr-no-route")
	l.Name = fmt.Sprintf("cancelled-%d", os.Getpid()) // nobody else's
	for after := range 18 {
		inner, cancel := context.WithCancel(t.Context())
		n, err := Up(&cancelAfter{Context: inner, n: after, cancel: cancel}, l, nil)
		cancel()
		if err == nil {
			n.Down()
			if after < 8 {
				t.Errorf("built although cancelled at step %d", after)
			}
			continue
		}
		if !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled at step %d: %v", after, err)
		}
	}
	checkGone(t, prefix+l.Name)
}

func TestFailingFaultUndoes(t *testing.T) {
	needRoot(t)
	l, _ := Find("pair-healthy")
	l.Name = fmt.Sprintf("failing-%d", os.Getpid())
	l.Faults = []Change{deleteRoute("server", gateway(IPv4, servers.addr(IPv4, 1)))} // it has none
	var log bytes.Buffer
	n, err := Up(t.Context(), l, &log)
	if err == nil {
		n.Down()
		t.Fatal("Up succeeded")
	}
	if want := "on server: ip route del default via 10.2.0.1: "; !strings.Contains(err.Error(), want) {
		t.Errorf("error %q lacks %q", err, want)
	}
	if !strings.Contains(log.String(), "ip route del default") {
		t.Errorf("log %q lacks the fault", log.String())
	}
	checkGone(t, prefix+l.Name)
}

func TestTrafficCancelled(t *testing.T) {
	needRoot(t)
	n := up(t, "dsr6-no-route")
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	begun := time.Now()
	if err := n.Traffic(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Traffic = %v", err)
	}
	if took := time.Since(begun); took > 2*time.Second {
		t.Errorf("took %v to stop", took)
	}
}

// TestDetach leaves a network to a process of its own, uses it, and takes it down as another process would.
func TestDetach(t *testing.T) {
	needRoot(t)
	l, _ := Find("dsr-tunnel-healthy")
	n, err := Up(t.Context(), l, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Down()
	if err := n.Detach(); err != nil {
		t.Fatal(err)
	}
	client, err := netns.GetFromName(n.Namespaces()["client"])
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	var greeting string
	err = enter(client, func() error {
		conn, err := net.DialTimeout("tcp", l.Topology.Client.Server.String(), 2*time.Second)
		if err != nil {
			return err
		}
		defer conn.Close()
		fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: vip\r\n\r\n")
		conn.SetDeadline(time.Now().Add(2 * time.Second))
		all, err := io.ReadAll(conn)
		greeting = string(all)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(greeting, "HTTP/1.1 200 OK\r\n") || !strings.Contains(greeting, "hello from "+n.id) {
		t.Errorf("the detached server says %q", greeting)
	}
	removed, err := DownAll(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range n.Namespaces() {
		if !slices.Contains(removed, name) {
			t.Errorf("DownAll did not remove %s", name)
		}
	}
	checkGone(t, n.id)
}

// TestDownAll kills a process that holds a lab; DownAll removes what it left,
// and not what a living process holds.
func TestDownAll(t *testing.T) {
	needRoot(t)
	held := up(t, "pair-healthy")
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), envHold+"=pair6-healthy")
	child.Stderr = os.Stderr
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	id := strings.TrimSpace(line)
	if removed, err := DownAll(t.Context()); err != nil || slices.Contains(removed, id+"-server") {
		t.Errorf("DownAll while the holder lives = %v, %v", removed, err)
	}
	child.Process.Kill()
	child.Wait()
	removed, err := DownAll(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(removed, id+"-client") || !slices.Contains(removed, id+"-server") {
		t.Errorf("DownAll removed %v, want those of %s", removed, id)
	}
	checkGone(t, id)
	if err := held.Traffic(t.Context()); err != nil || held.Outcome() != Connected {
		t.Errorf("the held lab: %q, %v", held.Outcome(), err)
	}
}

// TestDownSparesStrangers checks that a process without the mark survives its namespace's name.
func TestDownSparesStrangers(t *testing.T) {
	needRoot(t)
	n := up(t, "pair-healthy")
	sleeper := exec.Command("sleep", "60")
	if err := enter(n.hosts["server"].ns, sleeper.Start); err != nil {
		t.Fatal(err)
	}
	defer func() {
		sleeper.Process.Kill()
		sleeper.Wait()
	}()
	if err := n.Down(); err != nil {
		t.Fatal(err)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", sleeper.Process.Pid))
	if err != nil || bytes.Contains(status, []byte("State:\tZ")) {
		t.Errorf("a stranger in the namespace was ended: %v\n%s", err, status)
	}
}
