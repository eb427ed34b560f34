package probe

import (
	"bytes"
	"context"
	"encoding/binary"
	"net"
	"os"
	"testing"
	"time"
	"unsafe"

	"github.com/replypath/replypath/pkg/trace"
)

// dnsRecord is a record of the short form.
func dnsRecord(e dropEventDns) []byte {
	return append([]byte(nil), unsafe.Slice((*byte)(unsafe.Pointer(&e)), unsafe.Sizeof(e))...)
}

func TestDecodeDNS(t *testing.T) {
	var e dropEventDns
	e.Base.Event.Hook, e.Base.Event.Dns = uint16(dropHookHOOK_TRANSMIT), uint8(dropDnsFlagDNS_MESSAGE|dropDnsFlagDNS_ALONE)
	e.Base.Event.Tuple = tuple4()
	e.Length, e.Captured = 700, 5
	copy(e.Payload[:], "hello, world")
	var ev trace.Event
	if err := testDecoder().decode(dnsRecord(e), &ev); err != nil {
		t.Fatal(err)
	}
	if string(ev.Payload) != "hello" || ev.PayloadLength != 700 || !ev.PayloadOnly || ev.Tuple != want4 {
		t.Errorf("decoded %q of %d, alone %v, %v", ev.Payload, ev.PayloadLength, ev.PayloadOnly, ev.Tuple)
	}
	e.Captured = uint32(len(e.Payload)) + 1
	if err := testDecoder().decode(dnsRecord(e), &ev); err == nil {
		t.Error("decoded more than the record holds")
	}
	if err := testDecoder().decode(dnsRecord(e)[:payloadOffset-8], &ev); err == nil {
		t.Error("decoded a record that is too short")
	}
}

// payloads runs a probe that looks for DNS on a port, sends what send does, and
// returns the payloads of the port's packets as hooks told them, until each hook has told want.
func payloads(t *testing.T, port uint16, want int, send func()) []trace.Event {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	p, err := Open(Config{RingBytes: 1 << 20, Tier: TierBase, DNSPorts: []uint16{port}})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	go send()
	var seen []trace.Event
	err = p.Run(ctx, func(ev *trace.Event) {
		if ev.Tuple.Dst.Port() != port || ev.PayloadLength == 0 && ev.Datagram == 0 {
			return
		}
		kept := *ev
		kept.Payload = bytes.Clone(ev.Payload)
		if seen = append(seen, kept); len(seen) == 2*want {
			cancel()
		}
	}, func() {})
	if err != nil {
		t.Fatal(err)
	}
	return seen
}

// Each datagram is told at both hooks, though only the first is one for the table of paths:
// at the first hook with its payload, of which there is the beginning, and at the second
// one that it is the same, where it is long enough to tell.
func TestDatagramsOfDNS(t *testing.T) {
	server, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	sizes := []int{1, 17, 127, 128, 129, 511, 512, 513, 4000, 64}
	sent := bytes.Repeat([]byte("0123456789abcdef"), 300)
	seen := payloads(t, uint16(server.LocalAddr().(*net.UDPAddr).Port), len(sizes), func() {
		c, err := net.Dial("udp", server.LocalAddr().String())
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		for _, size := range sizes {
			c.Write(sent[:size])
		}
	})
	if len(seen) != 2*len(sizes) {
		t.Fatalf("%d events, want %d", len(seen), 2*len(sizes))
	}
	alone, short, sentAs := 0, 0, make(map[uint64]uint64)
	at := make(map[trace.Hook]int)
	for i := range seen {
		ev := &seen[i]
		size := sizes[at[ev.Hook]]
		at[ev.Hook]++
		if ev.Hook == trace.HookReceive && ev.PayloadLength == 0 {
			if short++; size < 16 || sentAs[ev.Datagram] != ev.SKB {
				t.Errorf("%d bytes: received as datagram %x, sent as %x", size, ev.Datagram, sentAs)
			}
		} else if int(ev.PayloadLength) != size || !bytes.Equal(ev.Payload, sent[:min(size, 512)]) {
			t.Errorf("%s: %d bytes of %d, want the beginning of %d", ev.Hook, len(ev.Payload), ev.PayloadLength, size)
		}
		if ev.Hook == trace.HookTransmit && ev.Datagram != 0 {
			sentAs[ev.Datagram] = ev.SKB
		}
		if ev.PayloadOnly {
			alone++
		}
		if ev.Netns == 0 || ev.Device.Name != "lo" || ev.SKB == 0 {
			t.Errorf("seen nowhere: %+v", *ev)
		}
		if ev.Hook == trace.HookTransmit && ev.Process.PID != uint32(os.Getpid()) {
			t.Errorf("sent by %v", ev.Process)
		}
	}
	if short < len(sizes)/2 { // a slow machine may take too long for one
		t.Errorf("%d of %d datagrams are told once", short, len(sizes))
	}
	// The first on each processor is one for the table of paths, too.
	if most := 2 * (len(sizes) - 1); alone > most || alone < most/2 {
		t.Errorf("%d events are for their payload alone, want up to %d", alone, most)
	}
}

// What TCP sends lies in pages; where they cannot be read nothing is claimed.
func TestSegmentsOfDNS(t *testing.T) {
	server, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	message := binary.BigEndian.AppendUint16(nil, 600)
	message = append(message, bytes.Repeat([]byte{'x'}, 600)...)
	if os.Getuid() == 0 {
		p := openProbe(t)
		for _, h := range p.Status() {
			if h.Name == statusPages && h.State != Attached {
				t.Skip(h.Reason)
			}
		}
		p.Close()
	}
	seen := payloads(t, uint16(server.Addr().(*net.TCPAddr).Port), 1, func() {
		c, err := net.Dial("tcp", server.Addr().String())
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		c.Write(message)
	})
	if len(seen) != 2 {
		t.Fatalf("%d events, want one at each hook", len(seen))
	}
	for i := range seen {
		ev := &seen[i]
		if int(ev.PayloadLength) != len(message) || !bytes.Equal(ev.Payload, message[:512]) || !ev.PayloadOnly || ev.Seq == 0 {
			t.Errorf("%s: %d bytes of %d, alone %v, sequence %d", ev.Hook, len(ev.Payload), ev.PayloadLength, ev.PayloadOnly, ev.Seq)
		}
	}
}
