package netstate

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// receiveSize holds the largest datagram that the kernel builds for a dump
// (32 KiB, net/netlink/af_netlink.c netlink_dump).
const receiveSize = 64 << 10

// socket is a netlink conversation with the namespace that it was opened in.
// The netlink library's own sockets read whole dumps into memory; this one
// hands out a message at a time and can stop in the middle.
type socket struct {
	fd       int
	port     uint32
	buf      *[receiveSize]byte
	protocol int
	strict   bool
}

// dialSocket opens a socket of a netlink family in the calling thread's
// namespace. A strict socket makes the kernel filter dumps (NETLINK_GET_STRICT_CHK, 4.20).
func dialSocket(protocol int, strict bool) (*socket, error) {
	s := &socket{fd: -1, protocol: protocol, strict: strict, buf: receiveBuffers.Get().(*[receiveSize]byte)}
	if err := s.open(); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// receiveBuffers saves a read from clearing its own.
var receiveBuffers = sync.Pool{New: func() any { return new([receiveSize]byte) }}

func (s *socket) open() error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, s.protocol)
	if err != nil {
		return fmt.Errorf("open netlink socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		unix.Close(fd)
		return fmt.Errorf("bind netlink socket: %w", err)
	}
	if s.strict {
		if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK, 1); err != nil {
			unix.Close(fd)
			return fmt.Errorf("make netlink socket strict: %w", err)
		}
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		unix.Close(fd)
		return fmt.Errorf("name netlink socket: %w", err)
	}
	if own, ok := name.(*unix.SockaddrNetlink); ok {
		s.port = own.Pid
	}
	s.fd = fd
	return nil
}

// Close ends the conversation for good.
func (s *socket) Close() {
	s.hangUp()
	receiveBuffers.Put(s.buf)
	s.buf = nil
}

// hangUp forgets what is still to come; the next exchange opens a new socket.
func (s *socket) hangUp() {
	if s.fd >= 0 {
		unix.Close(s.fd)
		s.fd = -1
	}
}

// setTimeout bounds the next send and receive by ctx.
func (s *socket) setTimeout(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	left := time.Second
	if deadline, ok := ctx.Deadline(); ok {
		left = time.Until(deadline)
	}
	if left < time.Microsecond {
		return context.DeadlineExceeded
	}
	limit := unix.NsecToTimeval(left.Nanoseconds())
	if err := unix.SetsockoptTimeval(s.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
		return os.NewSyscallError("setsockopt", err)
	}
	return nil
}

// exchange sends a request and calls each for the payload of every message of
// the answer, which is valid only during the call. each returns false to leave
// the rest unread. The error is a syscall.Errno (wrapped) where the kernel
// answered with one, and nl.ErrDumpInterrupted when the answer may be
// inconsistent.
func (s *socket) exchange(ctx context.Context, request *nl.NetlinkRequest, each func(payload []byte) bool) error {
	if s.fd < 0 {
		if err := s.open(); err != nil {
			return err
		}
	}
	if err := s.setTimeout(ctx); err != nil {
		return err
	}
	if err := s.send(request); err != nil {
		return os.NewSyscallError("sendto", err)
	}
	interrupted := false
	for {
		n, err := s.receive()
		if err != nil {
			s.hangUp() // the answer may still come: it must not answer the next request
			if errors.Is(err, unix.EAGAIN) {
				return context.DeadlineExceeded
			}
			return os.NewSyscallError("recvfrom", err)
		}
		end, err := s.deliver(s.buf[:n], request.Seq, each, &interrupted)
		if errors.Is(err, errStopped) {
			s.hangUp()
			return nil
		}
		if err != nil {
			return err
		}
		if end {
			break
		}
		if err := s.setTimeout(ctx); err != nil {
			s.hangUp()
			return err
		}
	}
	if interrupted {
		return nl.ErrDumpInterrupted
	}
	return nil
}

func (s *socket) send(request *nl.NetlinkRequest) error {
	for {
		err := unix.Sendto(s.fd, request.Serialize(), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		if err != unix.EINTR {
			return err
		}
	}
}

// receive reads one datagram of the kernel; others cannot write to this port, but are ignored if they do.
func (s *socket) receive() (int, error) {
	for {
		n, from, err := unix.Recvfrom(s.fd, s.buf[:], 0)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return 0, err
		}
		if sender, ok := from.(*unix.SockaddrNetlink); ok && sender.Pid == nl.PidKernel {
			return n, nil
		}
	}
}

// errStopped says that the reader of an answer wants no more of it.
var errStopped = errors.New("stopped")

// deliver calls each for the messages of one datagram and reports whether the answer ended.
func (s *socket) deliver(b []byte, seq uint32, each func([]byte) bool, interrupted *bool) (end bool, err error) {
	for len(b) > 0 {
		header, payload, rest, err := splitMessage(b)
		if err != nil {
			return false, err
		}
		b = rest
		if header.Seq != seq || header.Pid != s.port {
			continue
		}
		if header.Flags&unix.NLM_F_DUMP_INTR != 0 {
			*interrupted = true
		}
		switch header.Type {
		case unix.NLMSG_DONE, unix.NLMSG_ERROR:
			return true, messageError(payload)
		case unix.NLMSG_NOOP, unix.NLMSG_OVERRUN:
			continue
		}
		more := each(payload)
		if header.Flags&unix.NLM_F_MULTI == 0 {
			return true, nil
		}
		if !more {
			return false, errStopped
		}
	}
	return false, nil
}

// splitMessage takes the first netlink message (struct nlmsghdr) off b.
func splitMessage(b []byte) (header unix.NlMsghdr, payload, rest []byte, err error) {
	if len(b) < unix.SizeofNlMsghdr {
		return header, nil, nil, errTruncated
	}
	header = unix.NlMsghdr{
		Len:   binary.NativeEndian.Uint32(b),
		Type:  binary.NativeEndian.Uint16(b[4:]),
		Flags: binary.NativeEndian.Uint16(b[6:]),
		Seq:   binary.NativeEndian.Uint32(b[8:]),
		Pid:   binary.NativeEndian.Uint32(b[12:]),
	}
	if header.Len < unix.SizeofNlMsghdr || uint64(header.Len) > uint64(len(b)) {
		return header, nil, nil, errTruncated
	}
	length := int(header.Len)
	return header, b[unix.SizeofNlMsghdr:length], b[min((length+3)&^3, len(b)):], nil
}

// messageError reads the error number of NLMSG_ERROR and NLMSG_DONE; none is success.
func messageError(payload []byte) error {
	code := int32(uint32Of(payload))
	if code >= 0 {
		return nil
	}
	return syscall.Errno(-code)
}
