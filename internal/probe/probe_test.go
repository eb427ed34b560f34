package probe

import (
	"context"
	"net"
	"os"
	"testing"
	"time"

	"github.com/replypath/replypath/pkg/trace"
)

// openProbe opens the real thing; it must work wherever the tests run as root.
func openProbe(t *testing.T) *Probe {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	p, err := Open(Config{RingBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

func TestOpenAttachesAllHooks(t *testing.T) {
	p := openProbe(t)
	for _, h := range p.Status() {
		switch {
		case h.State == Refused && !h.Optional:
			t.Errorf("%s: %s %s", h.Name, h.State, h.Reason)
		case h.State != Attached && h.Reason == "":
			t.Errorf("%s: %s, and nobody knows why", h.Name, h.State)
		case h.State == Attached && h.Means == "":
			t.Errorf("%s: attached, and nobody knows how", h.Name)
		}
	}
}

// What the base tier asks for leaves the functions alone.
func TestBaseTier(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	p, err := Open(Config{RingBytes: 1 << 20, Tier: TierBase})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if p.Tier() != TierBase {
		t.Errorf("tier %s", p.Tier())
	}
	for _, h := range p.Status() {
		if h.Optional && h.Name != statusPages {
			t.Errorf("%s: %s", h.Name, h.State)
		}
	}
}

// A connection over the loopback device of this process's own namespace is seen
// from connect() to the handshake's end.
func TestRunSeesAHandshake(t *testing.T) {
	p := openProbe(t)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := uint16(l.Addr().(*net.TCPAddr).Port)
	seen := make(map[string]bool)
	go func() {
		if c, err := net.Dial("tcp", l.Addr().String()); err == nil {
			c.Close()
		}
	}()
	handle := func(ev *trace.Event) {
		if ev.Tuple.Dst.Port() != port && ev.Tuple.Src.Port() != port {
			return
		}
		seen[ev.Hook.String()+" "+ev.Flags.String()] = true
		if ev.Hook == trace.HookSocketState && ev.Process.PID == uint32(os.Getpid()) {
			seen["process"] = true
		}
		if ev.Netns == 0 {
			t.Errorf("no namespace: %+v", *ev)
		}
		if seen["net_dev_queue SYN"] && seen["netif_receive_skb SYN"] && seen["netif_receive_skb SYN-ACK"] && seen["process"] {
			cancel()
		}
	}
	if err := p.Run(ctx, handle, func() {}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"net_dev_queue SYN", "netif_receive_skb SYN", "net_dev_queue SYN-ACK", "netif_receive_skb SYN-ACK", "process"} {
		if !seen[want] {
			t.Errorf("did not see: %s", want)
		}
	}
	if p.Events() == 0 {
		t.Error("no events counted")
	}
}

// Flush delivers what is in the ring, however long the reader would have slept.
func TestFlush(t *testing.T) {
	p := openProbe(t)
	ctx, cancel := context.WithCancel(t.Context())
	idles := make(chan struct{}, 1000)
	done := make(chan error)
	go func() {
		done <- p.Run(ctx, func(*trace.Event) {}, func() {
			select {
			case idles <- struct{}{}:
			default:
			}
		})
	}()
	for range 20 {
		if err := p.Flush(); err != nil {
			t.Fatal(err)
		}
		select {
		case <-idles:
		case <-time.After(time.Second):
			t.Fatal("no answer to a flush")
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// A ring that is too small loses events, and says how many.
func TestLossIsCounted(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	p, err := Open(Config{RingBytes: os.Getpagesize()})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for range 50 { // nobody reads
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
	losses, err := p.Losses()
	if err != nil {
		t.Fatal(err)
	}
	if losses["ring_buffer_full"] == 0 {
		t.Errorf("losses = %v", losses)
	}
}
