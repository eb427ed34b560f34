package stream

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestParseEndpoint(t *testing.T) {
	tests := []struct{ text, network, address, err string }{
		{"unix:///run/replypath/agent.sock", "unix", "/run/replypath/agent.sock", ""},
		{"unix:///run//replypath/../agent.sock", "unix", "/run/agent.sock", ""},
		{"tcp://127.0.0.1:9000", "tcp", "127.0.0.1:9000", ""},
		{"tcp://[::1]:9000", "tcp", "[::1]:9000", ""},
		{"tcp://:9000", "tcp", ":9000", ""},
		{"", "", "", `parse address "": expected unix:///PATH or tcp://HOST:PORT`},
		{"/run/agent.sock", "", "", `parse address "/run/agent.sock": expected unix:///PATH or tcp://HOST:PORT`},
		{"http://localhost:80", "", "", `parse address "http://localhost:80": expected unix:///PATH or tcp://HOST:PORT`},
		{"unix://agent.sock", "", "", `parse address "unix://agent.sock": expected unix:// and the absolute path of a socket`},
		{"unix:///", "", "", `parse address "unix:///": expected unix:// and the absolute path of a socket`},
		{"unix://@abstract", "", "", `parse address "unix://@abstract": expected unix:// and the absolute path of a socket`},
		{"tcp://localhost", "", "", `parse address "tcp://localhost": expected tcp://HOST:PORT`},
		{"tcp://localhost:http", "", "", `parse address "tcp://localhost:http": port "http" is no number from 0 to 65535`},
		{"tcp://localhost:65536", "", "", `parse address "tcp://localhost:65536": port "65536" is no number from 0 to 65535`},
		{"unix:///" + strings.Repeat("a", 107), "", "", `parse address "unix:///` + strings.Repeat("a", 107) + `": the path is longer than 107 bytes`},
	}
	for _, tt := range tests {
		e, err := ParseEndpoint(tt.text)
		if tt.err != "" {
			if err == nil || err.Error() != tt.err {
				t.Errorf("%q: error %v, want %s", tt.text, err, tt.err)
			}
			continue
		}
		if err != nil || e.Network != tt.network || e.Address != tt.address {
			t.Errorf("%q: %+v, %v", tt.text, e, err)
		}
	}
}

func endpoint(t *testing.T, elements ...string) Endpoint {
	t.Helper()
	return Endpoint{Network: "unix", Address: filepath.Join(append([]string{t.TempDir()}, elements...)...)}
}

// mode returns the permission bits of a file.
func mode(t *testing.T, path string) fs.FileMode {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Mode().Perm()
}

func TestListenUnix(t *testing.T) {
	defer unix.Umask(unix.Umask(0)) // the worst one
	e := endpoint(t, "a", "b", "agent.sock")
	l, err := listenUnix(e)
	if err != nil {
		t.Fatal(err)
	}
	if got := mode(t, e.Address); got != 0o600 {
		t.Errorf("socket has mode %o, want 600", got)
	}
	if got := mode(t, filepath.Dir(e.Address)); got != 0o700 {
		t.Errorf("directory has mode %o, want 700", got)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	left, err := os.ReadDir(filepath.Dir(e.Address))
	if err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestSocketNeverOpen looks at the socket between bind and listen.
func TestSocketNeverOpen(t *testing.T) {
	defer unix.Umask(unix.Umask(0))
	path := endpoint(t, "agent.sock").Address
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	if err := errors.Join(unix.Fchmod(fd, socketMode), unix.Bind(fd, &unix.SockaddrUnix{Name: path})); err != nil {
		t.Fatal(err)
	}
	if got := mode(t, path); got != 0o600 {
		t.Errorf("a bound socket has mode %o: this kernel does not take it from the socket", got)
	}
}

func TestListenUnixKeepsDirectory(t *testing.T) {
	e := endpoint(t, "run", "agent.sock")
	if err := os.Mkdir(filepath.Dir(e.Address), 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := listenUnix(e)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if got := mode(t, filepath.Dir(e.Address)); got != 0o755 {
		t.Errorf("the directory's mode became %o", got)
	}
}

// TestListenUnixAfterKill leaves a socket as a killed agent does.
func TestListenUnixAfterKill(t *testing.T) {
	e := endpoint(t, "agent.sock")
	killed, err := net.ListenUnix("unix", &net.UnixAddr{Name: e.Address})
	if err != nil {
		t.Fatal(err)
	}
	killed.SetUnlinkOnClose(false)
	_ = killed.Close()
	l, err := listenUnix(e)
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
}

func TestListenUnixRefuses(t *testing.T) {
	live := endpoint(t, "agent.sock")
	l, err := listenUnix(live)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if _, err := listenUnix(live); err == nil || err.Error() != "another agent listens on "+live.String() {
		t.Errorf("a live agent: %v", err)
	}
	if _, err := net.Dial("unix", live.Address); err != nil {
		t.Errorf("the live agent is gone: %v", err)
	}

	file := endpoint(t, "file")
	if err := os.WriteFile(file.Address, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := listenUnix(file); err == nil || err.Error() != "listen on "+file.String()+": the file exists and is not a socket" {
		t.Errorf("a file: %v", err)
	}
	below := Endpoint{Network: "unix", Address: file.Address + "/run/agent.sock"}
	if _, err := listenUnix(below); err == nil || err.Error() != "make directory "+file.Address+": not a directory" {
		t.Errorf("below a file: %v", err)
	}
	link := endpoint(t, "link")
	if err := os.Symlink(live.Address, link.Address); err != nil {
		t.Fatal(err)
	}
	if _, err := listenUnix(link); err == nil {
		t.Error("a symbolic link was replaced")
	}
	datagrams := endpoint(t, "datagrams")
	d, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: datagrams.Address})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }()
	if _, err := listenUnix(datagrams); err == nil || !strings.HasPrefix(err.Error(), "ask who listens on ") {
		t.Errorf("a datagram socket: %v", err)
	}
}

// TestListenUnixTogether: of agents that start at once over a left socket, one wins.
func TestListenUnixTogether(t *testing.T) {
	for range 20 {
		e := endpoint(t, "agent.sock")
		left, err := net.ListenUnix("unix", &net.UnixAddr{Name: e.Address})
		if err != nil {
			t.Fatal(err)
		}
		left.SetUnlinkOnClose(false)
		_ = left.Close()
		var group sync.WaitGroup
		won := make(chan net.Listener, 8)
		for range 8 {
			group.Go(func() {
				if l, err := listenUnix(e); err == nil {
					won <- l
				}
			})
		}
		group.Wait()
		if len(won) != 1 {
			t.Fatalf("%d agents listen", len(won))
		}
		_ = (<-won).Close()
	}
}

// TestLockHeld: someone who holds the lock delays the agent and no more.
func TestLockHeld(t *testing.T) {
	e := endpoint(t, "agent.sock")
	f, err := os.Open(filepath.Dir(e.Address))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	l, err := listenUnix(e)
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	if took := time.Since(began); took < lockTimeout {
		t.Errorf("the lock was not waited for: %v", took)
	}
}
