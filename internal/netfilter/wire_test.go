package netfilter

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/replypath/replypath/pkg/trace"
	"golang.org/x/sys/unix"
)

// shot is a packet that a test sends; its number travels in the UDP payload or
// the TCP sequence number.
type shot struct {
	number uint32
	tuple  trace.Tuple
	flags  trace.TCPFlags
	mark   uint32
}

// bytes builds the transport header and payload.
func (s shot) bytes() []byte {
	src, dst := s.tuple.Src, s.tuple.Dst
	var b []byte
	b = binary.BigEndian.AppendUint16(b, src.Port())
	b = binary.BigEndian.AppendUint16(b, dst.Port())
	sumAt := 6
	if s.tuple.Protocol == trace.TCP {
		sumAt = 16
		b = binary.BigEndian.AppendUint32(b, s.number)
		b = binary.BigEndian.AppendUint32(b, 0)
		b = append(b, 5<<4, byte(s.flags), 0xff, 0xff, 0, 0, 0, 0)
	} else {
		b = append(b, 0, 12, 0, 0)
		b = binary.BigEndian.AppendUint32(b, s.number)
	}
	pseudo := append(append([]byte{}, src.Addr().AsSlice()...), dst.Addr().AsSlice()...)
	pseudo = binary.BigEndian.AppendUint32(pseudo, uint32(len(b)))
	pseudo = binary.BigEndian.AppendUint32(pseudo, uint32(s.tuple.Protocol))
	binary.BigEndian.PutUint16(b[sumAt:], checksum(append(pseudo, b...)))
	return b
}

func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

func sockaddr(a netip.Addr) unix.Sockaddr {
	if a.Is6() {
		return &unix.SockaddrInet6{Addr: a.As16()}
	}
	return &unix.SockaddrInet4{Addr: a.As4()}
}

// fire sends a packet from the namespace.
func (s *space) fire(p shot) {
	s.t.Helper()
	s.do(func() error {
		domain := unix.AF_INET
		if p.tuple.Is6() {
			domain = unix.AF_INET6
		}
		fd, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(p.tuple.Protocol))
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.Bind(fd, sockaddr(p.tuple.Src.Addr())); err != nil {
			return err
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(p.mark)); err != nil {
			return err
		}
		err = unix.Sendto(fd, p.bytes(), 0, sockaddr(p.tuple.Dst.Addr()))
		if err == unix.EPERM || err == unix.EHOSTUNREACH || err == unix.ENETUNREACH || err == unix.ECONNREFUSED || err == unix.EACCES {
			err = nil // what a filter makes of it
		}
		return err
	})
}

// ear hears every TCP and UDP packet that is delivered to a namespace.
type ear struct {
	fds [4]int
}

// listen opens raw sockets: they get packets after all hooks of the way in.
func (s *space) listen() *ear {
	s.t.Helper()
	e := &ear{}
	s.do(func() error {
		for i, domain := range []int{unix.AF_INET, unix.AF_INET6} {
			for j, protocol := range []int{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
				fd, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
				if err != nil {
					return err
				}
				_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20)
				e.fds[2*i+j] = fd
			}
		}
		return nil
	})
	s.t.Cleanup(func() {
		for _, fd := range e.fds {
			unix.Close(fd)
		}
	})
	return e
}

// heard returns the numbers of the packets that have come since it was last asked.
func (e *ear) heard(t testing.TB, wait time.Duration) map[uint32]bool {
	t.Helper()
	time.Sleep(wait)
	out := map[uint32]bool{}
	buffer := make([]byte, 2048)
	for i, fd := range e.fds {
		for {
			n, err := unix.Read(fd, buffer)
			if err != nil {
				break
			}
			b := buffer[:n]
			if i < 2 && len(b) > 20 {
				b = b[int(b[0]&15)*4:] // IPv4 raw sockets see the IP header
			}
			at := 8
			if i%2 == 0 {
				at = 4
				if len(b) >= 14 && trace.TCPFlags(b[13]).Has(trace.RST) {
					continue
				}
			}
			if len(b) >= at+4 {
				out[binary.BigEndian.Uint32(b[at:])] = true
			}
		}
	}
	return out
}
