package netstate

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/replypath/replypath/pkg/trace"
)

// maxListening bounds the sockets of one namespace that are listed.
const maxListening = 4096

// Listening lists the TCP sockets that listen and the UDP sockets that are
// connected to nobody, in the calling thread's namespace. Their processes are
// not looked for: see NameOwners.
func Listening(ctx context.Context) ([]trace.Socket, error) {
	diag, err := dialSocket(unix.NETLINK_SOCK_DIAG, false)
	if err != nil {
		return nil, err
	}
	defer diag.Close()
	var found []trace.Socket
	var errs []error
	for _, protocol := range []trace.Protocol{trace.TCP, trace.UDP} {
		for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
			err := diag.exchange(ctx, listeningDump(family, protocol), func(b []byte) bool {
				if s, ok := parseListening(b, protocol); ok {
					found = append(found, s)
				}
				return len(found) < maxListening
			})
			if err != nil {
				errs = append(errs, fmt.Errorf("list %s sockets: %w", protocol, err))
			}
		}
	}
	return found, errors.Join(errs...)
}

// listeningDump asks for the sockets of a protocol that wait for anybody.
func listeningDump(family uint8, protocol trace.Protocol) *nl.NetlinkRequest {
	request := nl.NewNetlinkRequest(unix.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP)
	header := make(rawMessage, sizeofDiagRequest)
	header[0], header[1] = family, uint8(protocol)
	states := uint32(1 << tcpListen)
	if protocol == trace.UDP {
		states = 1 << tcpClose
	}
	binary.NativeEndian.PutUint32(header[4:], states)
	request.AddData(header)
	return request
}

// parseListening reads a struct inet_diag_msg; false for a socket without a port.
func parseListening(b []byte, protocol trace.Protocol) (trace.Socket, bool) {
	l, err := parseListener(b)
	if err != nil || l.addr.Port() == 0 {
		return trace.Socket{}, false
	}
	return trace.Socket{
		Protocol: protocol, Local: l.addr, Device: l.device, V6Only: l.v6Only,
		UID: binary.NativeEndian.Uint32(b[64:]), Inode: uint64(binary.NativeEndian.Uint32(b[68:])),
	}, true
}

// Takes reports whether a socket of Listening would get what is sent to an
// address that is local: an IPv6 socket gets IPv4 too unless it says otherwise.
func Takes(s *trace.Socket, to netip.AddrPort) bool {
	l := listener{family: unix.AF_INET6, addr: s.Local, v6Only: s.V6Only}
	if s.Local.Addr().Is4() {
		l.family = unix.AF_INET
	}
	return l.takes(to, arrival{})
}

// NameOwners finds a process that has each socket open, as far as /proc may be read.
func NameOwners(ctx context.Context, sockets []trace.Socket) { nameOwners(ctx, sockets) }
