package netfilter

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The package reads netlink itself: the Go library for nftables leaves out
// expressions that it does not know, which turns a rule that matches little
// into one that matches everything; and its dumps are bounded neither in time
// nor in size.

// timeLimit bounds all reading for one answer.
const timeLimit = time.Second

// errTime says that the kernel took longer than timeLimit.
var errTime = errors.New("time limit reached")

// attributes are the netlink attributes of a message (struct nlattr). A broken
// one ends the sequence.
func attributes(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= unix.SizeofNlAttr {
			n := int(binary.NativeEndian.Uint16(b))
			kind := binary.NativeEndian.Uint16(b[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
			if n < unix.SizeofNlAttr || n > len(b) {
				return
			}
			if !yield(kind, b[unix.SizeofNlAttr:n]) {
				return
			}
			b = b[min((n+3)&^3, len(b)):]
		}
	}
}

// appendAttribute writes an attribute.
func appendAttribute(b []byte, kind uint16, data []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(unix.SizeofNlAttr+len(data)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, data...)
	return append(b, make([]byte, (4-len(data)%4)%4)...)
}

// be32 and be64 read a number of an attribute; one that is too short is zero.
func be32(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return binary.BigEndian.Uint32(b)
}

func be64(b []byte) uint64 {
	if len(b) < 8 {
		return 0
	}
	return binary.BigEndian.Uint64(b)
}

// socket is a netlink socket of the calling thread's network namespace.
type socket struct {
	fd       int
	sequence uint32
	until    time.Time
	buffer   []byte
	// generation is that of the rule set of the first answer; changed is set
	// when a later answer came from another one.
	generation uint16
	seen       bool
	changed    bool
}

// openSocket opens NETLINK_NETFILTER.
func openSocket(until time.Time) (*socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	// A larger buffer lets the kernel fill larger answers, so it is asked less often.
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 1<<20)
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK, 1)
	return &socket{fd: fd, until: until, buffer: make([]byte, 64<<10)}, nil
}

func (s *socket) close() { unix.Close(s.fd) }

// dump asks for all objects of a kind (NFT_MSG_GET*) and calls f with the
// family and the attributes of each.
func (s *socket) dump(message uint16, fam family, attrs []byte, f func(family, []byte) error) error {
	s.sequence++
	if err := s.send(message, fam, attrs); err != nil {
		return err
	}
	for {
		b, err := s.receive()
		if err != nil {
			return err
		}
		done, err := s.messages(b, f)
		if done || err != nil {
			return err
		}
	}
}

// send writes a dump request (struct nlmsghdr, struct nfgenmsg).
func (s *socket) send(message uint16, fam family, attrs []byte) error {
	b := make([]byte, 0, 20+len(attrs))
	b = binary.NativeEndian.AppendUint32(b, uint32(20+len(attrs)))
	b = binary.NativeEndian.AppendUint16(b, unix.NFNL_SUBSYS_NFTABLES<<8|message)
	b = binary.NativeEndian.AppendUint16(b, unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	b = binary.NativeEndian.AppendUint32(b, s.sequence)
	b = append(b, 0, 0, 0, 0, byte(fam), unix.NFNETLINK_V0, 0, 0)
	b = append(b, attrs...)
	if err := unix.Sendto(s.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return os.NewSyscallError("sendto", err)
	}
	return nil
}

// receive reads one datagram, waiting no longer than the time limit.
func (s *socket) receive() ([]byte, error) {
	for {
		left := time.Until(s.until)
		if left <= 0 {
			return nil, errTime
		}
		tv := unix.NsecToTimeval(left.Nanoseconds())
		if tv.Sec == 0 && tv.Usec == 0 {
			tv.Usec = 1
		}
		if err := unix.SetsockoptTimeval(s.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
			return nil, os.NewSyscallError("setsockopt", err)
		}
		n, from, err := unix.Recvfrom(s.fd, s.buffer, unix.MSG_TRUNC)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			return nil, errTime
		case err != nil:
			return nil, os.NewSyscallError("recvfrom", err)
		case n > len(s.buffer):
			return nil, errors.New("message too long")
		}
		if a, ok := from.(*unix.SockaddrNetlink); ok && a.Pid != 0 {
			continue // not from the kernel
		}
		return s.buffer[:n], nil
	}
}

// messages hands out the messages of a datagram. done is set at the end of the dump.
func (s *socket) messages(b []byte, f func(family, []byte) error) (done bool, err error) {
	for len(b) >= unix.SizeofNlMsghdr {
		n := int(binary.NativeEndian.Uint32(b))
		kind := binary.NativeEndian.Uint16(b[4:])
		flags := binary.NativeEndian.Uint16(b[6:])
		sequence := binary.NativeEndian.Uint32(b[8:])
		if n < unix.SizeofNlMsghdr || n > len(b) {
			return false, errors.New("broken message")
		}
		body := b[unix.SizeofNlMsghdr:n]
		b = b[min((n+3)&^3, len(b)):]
		if sequence != s.sequence {
			continue // of a dump that was given up
		}
		if flags&unix.NLM_F_DUMP_INTR != 0 {
			s.changed = true
		}
		switch kind {
		case unix.NLMSG_DONE, unix.NLMSG_ERROR:
			return true, answerError(body)
		case unix.NLMSG_NOOP:
			continue
		}
		if len(body) < 4 {
			return false, errors.New("broken message")
		}
		s.note(binary.BigEndian.Uint16(body[2:]))
		if err := f(family(body[0]), body[4:]); err != nil {
			return false, err
		}
	}
	return false, nil
}

// answerError reads the error number at the start of the message that ends an answer.
func answerError(body []byte) error {
	if len(body) < 4 {
		return nil
	}
	if n := int32(binary.NativeEndian.Uint32(body)); n < 0 {
		return syscall.Errno(-n)
	}
	return nil
}

// note keeps the generation of the rule set that an answer came from
// (nfnl_msg_put in include/linux/netfilter/nfnetlink.h).
func (s *socket) note(generation uint16) {
	if s.seen && generation != s.generation {
		s.changed = true
	}
	s.generation, s.seen = generation, true
}
