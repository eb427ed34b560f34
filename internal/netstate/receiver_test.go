package netstate

import (
	"net"
	"net/netip"
	"os"
	"testing"

	"github.com/replypath/replypath/pkg/trace"
)

// The test's own socket is found, with its buffer and its process.
func TestReadReceivers(t *testing.T) {
	conn, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Skip(err)
	}
	defer conn.Close()
	must(t, conn.(*net.UDPConn).SetReadBuffer(4096))
	dst := conn.LocalAddr().(*net.UDPAddr).AddrPort()
	sender, err := net.Dial("udp4", dst.String())
	must(t, err)
	defer sender.Close()
	for range 20 {
		_, err := sender.Write(make([]byte, 900))
		must(t, err)
	}
	r := newTestReader(t, nil)
	state := ask(t, r, trace.Question{
		Place: trace.Place{Netns: r.inode}, Receivers: true,
		Packet: trace.Tuple{Protocol: trace.UDP, Src: netip.MustParseAddrPort("127.0.0.1:40000"), Dst: dst},
	})
	if len(state.Sockets) != 1 {
		t.Fatalf("sockets: %+v, not read: %v", state.Sockets, state.Unread)
	}
	s := state.Sockets[0]
	if s.Local != dst || s.Buffer == 0 || s.Used == 0 || s.Drops == 0 || s.Process.PID != uint32(os.Getpid()) {
		t.Errorf("socket %+v, want %s of this process, with drops", s, dst)
	}
}
