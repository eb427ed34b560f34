package netstate

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/replypath/replypath/pkg/trace"
)

// startSleeper starts a process in a nameless network namespace of its own and returns its number.
func startSleeper(t *testing.T) int {
	t.Helper()
	cmd := exec.Command("sleep", "60")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Pdeathsig: unix.SIGKILL}
	must(t, cmd.Start())
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return cmd.Process.Pid
}

func count(t *testing.T, dir string) int {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	return len(entries)
}

// strays counts the threads of this process that are not in its namespace.
func strays(t *testing.T, home trace.Netns) int {
	t.Helper()
	tasks, err := os.ReadDir("/proc/self/task")
	must(t, err)
	n := 0
	for _, task := range tasks {
		var stat unix.Stat_t
		if unix.Stat("/proc/self/task/"+task.Name()+"/ns/net", &stat) == nil && trace.Netns(stat.Ino) != home {
			n++
		}
	}
	return n
}

func TestReadLeaksNothing(t *testing.T) {
	p := plans["ipv4"]
	h, _ := newHost(t, p)
	defaultRoute(h, p)
	r := newTestReader(t, nil)
	questions := []trace.Question{
		{Place: h.place(), Packet: packet(p.client, p.vip), In: h.index("eth1")},
		{Place: h.place(), Packet: packet(p.vip, p.client)},
		{Place: trace.Place{Netns: 1}, Packet: packet(p.vip, p.client)},
	}
	read := func(n int) {
		var group sync.WaitGroup
		for range 4 {
			group.Go(func() {
				for i := range n {
					q := questions[i%len(questions)]
					if _, err := r.Read(context.Background(), q); err != nil && !errors.Is(err, ErrNoNamespace) {
						t.Errorf("Read: %v", err)
						return
					}
				}
			})
		}
		group.Wait()
	}
	read(25)
	files, threads := count(t, "/proc/self/fd"), count(t, "/proc/self/task")
	read(250)
	if n := count(t, "/proc/self/fd"); n > files {
		t.Errorf("%d open files after 1000 reads, %d before", n, files)
	}
	if n := count(t, "/proc/self/task"); n > threads+4 { // the runtime starts some of its own
		t.Errorf("%d threads after 1000 reads, %d before", n, threads)
	}
	waitFor(t, "return of all threads", func() bool { return strays(t, r.inode) == 0 })
}

func TestReadWhileNamespaceGoes(t *testing.T) {
	p := plans["ipv4"]
	r := newTestReader(t, nil)
	for range 10 {
		h, _ := newHost(t, p)
		defaultRoute(h, p)
		stop := make(chan struct{})
		var group sync.WaitGroup
		for range 4 {
			group.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					_, err := r.Read(context.Background(), trace.Question{Place: h.place(), Packet: packet(p.client, p.vip), In: 2})
					if err != nil && !errors.Is(err, ErrNoNamespace) {
						t.Errorf("Read: %v", err)
						return
					}
				}
			})
		}
		time.Sleep(5 * time.Millisecond)
		must(t, netns.DeleteNamed(h.name))
		time.Sleep(5 * time.Millisecond)
		close(stop)
		group.Wait()
		_, err := r.Read(context.Background(), trace.Question{Place: h.place(), Packet: packet(p.client, p.vip)})
		if !errors.Is(err, ErrNoNamespace) {
			t.Errorf("Read of a removed namespace: %v, want ErrNoNamespace", err)
		}
	}
}

// A namespace whose inode is used again under another name must be read as what it is now.
func TestReadAfterInodeReuse(t *testing.T) {
	needRoot(t)
	r := newTestReader(t, nil)
	p := plans["ipv4"]
	var last *space
	reused := false
	for range 20 {
		h := newSpace(t)
		r.dir.Place(h.inode)
		reused = reused || last != nil && last.inode == h.inode
		waitFor(t, "name "+h.name, func() bool { return r.dir.Place(h.inode).Name == h.name })
		ask(t, r, trace.Question{Place: h.place(), Packet: packet(p.client, p.vip)})
		h.Close()
		h.fd.Close()
		must(t, netns.DeleteNamed(h.name))
		last = h
	}
	if !reused {
		t.Log("the kernel did not use an inode again")
	}
}

func BenchmarkRead(b *testing.B) {
	for family, p := range plans {
		h, _ := newHost(b, p)
		ownsVIP(h, p)
		r := newTestReader(b, nil)
		q := trace.Question{Place: h.place(), Packet: packet(p.client, p.vip), In: h.index("eth1"), SourceMAC: [6]byte{2, 0, 0, 0, 0, 1}}
		read := func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := r.Read(context.Background(), q); err != nil {
					b.Fatal(err)
				}
			}
		}
		b.Run(family+"/no route back", read)
		defaultRoute(h, p)
		b.Run(family+"/healthy", read)
	}
}
