package filter

import (
	"bytes"
	"encoding/binary"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/replypath/replypath/pkg/trace"
)

var update = flag.Bool("update", false, "ask tcpdump again, and write testdata/libpcap.golden")

// packets are what libpcap was asked about.
var packets = []trace.Tuple{
	tuple(trace.TCP, "198.51.100.7:41822", "203.0.113.80:80"),
	tuple(trace.TCP, "198.51.100.7:41823", "203.0.113.80:443"),
	tuple(trace.TCP, "10.1.2.3:1500", "203.0.113.80:443"),
	tuple(trace.UDP, "10.1.2.3:5353", "10.96.0.10:53"),
	tuple(trace.UDP, "10.0.2.3:123", "10.7.2.9:123"),
	tuple(trace.UDP, "198.51.100.9:53", "10.1.2.3:4000"),
	tuple(trace.ICMP, "198.51.100.7:0", "10.1.2.3:0"),
	tuple(trace.TCP, "[2001:db8::7]:50000", "[2001:db8:1::80]:80"),
	tuple(trace.UDP, "[2001:db8::7]:50000", "[2a00:1::53]:53"),
	tuple(trace.ICMPv6, "[fe80::1]:0", "[2001:db8::7]:0"),
	tuple(trace.TCP, "192.0.2.1:22", "192.0.2.2:2000"),
	tuple(trace.UDP, "192.0.2.1:22", "192.0.2.2:99"),
	tuple(trace.TCP, "203.0.113.80:443", "198.51.100.7:41823"),
	tuple(trace.TCP, "10.1.2.3:50000", "10.1.2.3:80"),
	tuple(trace.TCP, "192.0.2.1:0", "192.0.2.2:53"),
	tuple(trace.UDP, "0.0.0.0:68", "255.255.255.255:67"),
}

func tuple(protocol trace.Protocol, src, dst string) trace.Tuple {
	return trace.Tuple{Protocol: protocol, Src: netip.MustParseAddrPort(src), Dst: netip.MustParseAddrPort(dst)}
}

// TestLikeLibpcap compares with what libpcap selected, by way of tcpdump.
func TestLikeLibpcap(t *testing.T) {
	expressions, err := os.ReadFile("testdata/expressions.txt")
	if err != nil {
		t.Fatal(err)
	}
	golden := filepath.Join("testdata", "libpcap.golden")
	if *update {
		if err := os.WriteFile(golden, askLibpcap(t, string(expressions)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	for _, expression := range lines(string(expressions)) {
		f, err := Parse(expression)
		if err != nil {
			t.Errorf("%q: libpcap accepts it: %v", expression, err)
			continue
		}
		selected := make([]byte, len(packets))
		for i, p := range packets {
			selected[i] = '.'
			if f.MatchTuple(p) {
				selected[i] = '#'
			}
		}
		fmt.Fprintf(&got, "%s %s\n", selected, expression)
	}
	wantLines, gotLines := strings.Split(string(want), "\n"), strings.Split(got.String(), "\n")
	if len(wantLines) != len(gotLines) {
		t.Fatalf("%d lines in %s, want %d: run with -update", len(wantLines), golden, len(gotLines))
	}
	for i := range wantLines {
		if wantLines[i] != gotLines[i] {
			t.Errorf("\n got %s\nwant %s", gotLines[i], wantLines[i])
		}
	}
}

func lines(text string) []string {
	var out []string
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
			out = append(out, line)
		}
	}
	return out
}

// askLibpcap gives the packets to tcpdump, one second apart, and reads which it prints.
func askLibpcap(t *testing.T, expressions string) []byte {
	t.Helper()
	file := filepath.Join(t.TempDir(), "packets.pcap")
	if err := os.WriteFile(file, capture(), 0o600); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	for _, expression := range lines(expressions) {
		printed, err := exec.Command("tcpdump", "-nn", "-tt", "-r", file, expression).Output()
		if err != nil {
			t.Fatalf("tcpdump %q: %v", expression, err)
		}
		selected := bytes.Repeat([]byte{'.'}, len(packets))
		for line := range strings.Lines(string(printed)) {
			var second int
			if line[0] == '\t' {
				continue // the packet in hexadecimal
			}
			if _, err := fmt.Sscanf(line, "%d.", &second); err != nil {
				t.Fatalf("tcpdump %q printed %q", expression, line)
			}
			selected[second-1] = '#'
		}
		fmt.Fprintf(&out, "%s %s\n", selected, expression)
	}
	return out.Bytes()
}

// capture writes the packets as a pcap file of raw IP.
func capture() []byte {
	const linkTypeRaw = 101
	le := binary.LittleEndian
	b := le.AppendUint32(nil, 0xa1b2c3d4)
	b = le.AppendUint16(b, 2)
	b = le.AppendUint16(b, 4)
	for _, v := range []uint32{0, 0, 65535, linkTypeRaw} {
		b = le.AppendUint32(b, v)
	}
	for i, p := range packets {
		data := packet(p)
		for _, v := range []int{i + 1, 0, len(data), len(data)} {
			b = le.AppendUint32(b, uint32(v))
		}
		b = append(b, data...)
	}
	return b
}

func packet(t trace.Tuple) []byte {
	be := binary.BigEndian
	payload := be.AppendUint16(nil, t.Src.Port())
	payload = be.AppendUint16(payload, t.Dst.Port())
	payload = append(payload, make([]byte, 16)...)
	payload[12] = 0x50 // TCP: data offset
	if t.Protocol == trace.UDP {
		be.PutUint16(payload[4:], uint16(len(payload)))
	}
	var b []byte
	if t.Is6() {
		b = []byte{0x60, 0, 0, 0}
		b = be.AppendUint16(b, uint16(len(payload)))
		b = append(b, byte(t.Protocol), 64)
	} else {
		b = []byte{0x45, 0}
		b = be.AppendUint16(b, uint16(20+len(payload)))
		b = append(b, 0, 0, 0, 0, 64, byte(t.Protocol), 0, 0)
	}
	b = append(b, t.Src.Addr().AsSlice()...)
	b = append(b, t.Dst.Addr().AsSlice()...)
	return append(b, payload...)
}
