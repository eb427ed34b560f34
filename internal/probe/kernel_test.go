package probe

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/replypath/replypath/pkg/trace"
)

// On a kernel that does not know its own types, arguments are numbers, and all is
// seen that is seen with types. This kernel is treated as if it were one.
func TestUntypedKernel(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	k, err := readKernel("")
	if err != nil {
		t.Fatal(err)
	}
	k.typed = false
	p, err := open(Config{RingBytes: 1 << 20}, k)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	for _, h := range p.tracepoints {
		if h.State == Refused || h.State == Attached && h.Means != "raw_tp" {
			t.Errorf("%s: %s by %q, %s", h.Name, h.State, h.Means, h.Reason)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := uint16(l.Addr().(*net.TCPAddr).Port)
	go func() {
		if c, err := net.Dial("tcp", l.Addr().String()); err == nil {
			c.Close()
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	seen := false
	if err := p.Run(ctx, func(ev *trace.Event) {
		if ev.Hook == trace.HookReceive && ev.Flags.IsSYNACK() && ev.Tuple.Src.Port() == port && ev.Netns != 0 && ev.Device.Name == "lo" {
			seen = true
			cancel()
		}
	}, func() {}); err != nil {
		t.Fatal(err)
	}
	if !seen {
		t.Error("the handshake's SYN-ACK was not seen")
	}
}

// A file that is not the BTF of a kernel is refused in one line that names it.
func TestBTFFileIsChecked(t *testing.T) {
	notBTF := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(notBTF, []byte("no types here"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{notBTF, filepath.Join(t.TempDir(), "missing"), "/proc/self/exe"} {
		_, err := Open(Config{BTF: file})
		if !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), "--btf "+file) || strings.Contains(err.Error(), "\n") {
			t.Errorf("--btf %s: %v", file, err)
		}
	}
}

// What names a function where the kernel cannot: the newest table, and its lack.
func TestSymbolsByTable(t *testing.T) {
	s := newSymbols(nil)
	if got := s.name(1); got != "" {
		t.Errorf("address 1 is in %q", got)
	}
	if os.Getuid() == 0 && s.table == nil {
		t.Error("as root, /proc/kallsyms was not read")
	}
}
