package netstate

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Sizes and codes of include/uapi/linux/inet_diag.h and sock_diag.h.
const (
	sizeofDiagRequest = 56 // struct inet_diag_req_v2
	sizeofDiagMessage = 72 // struct inet_diag_msg
	diagFilter        = 1  // INET_DIAG_REQ_BYTECODE
	diagNop           = 0
	diagSourceGE      = 2
	diagSourceLE      = 3
	diagV6Only        = 11 // INET_DIAG_SKV6ONLY
	tcpClose          = 7  // enum in include/net/tcp_states.h
	tcpListen         = 10
)

// listener is a listening socket (struct inet_diag_msg and its attributes).
type listener struct {
	family  uint8
	addr    netip.AddrPort
	device  uint32 // bound to it; 0: any
	queue   uint32 // connections that wait for accept
	backlog uint32
	v6Only  bool
}

// parseListener reads a struct inet_diag_msg with its attributes.
func parseListener(b []byte) (listener, error) {
	if len(b) < sizeofDiagMessage {
		return listener{}, errTruncated
	}
	l := listener{
		family:  b[0],
		device:  binary.NativeEndian.Uint32(b[40:]),
		queue:   binary.NativeEndian.Uint32(b[56:]),
		backlog: binary.NativeEndian.Uint32(b[60:]),
	}
	raw := b[8:24]
	if l.family == unix.AF_INET {
		raw = raw[:4]
	}
	l.addr = netip.AddrPortFrom(addressOf(raw), binary.BigEndian.Uint16(b[4:]))
	for kind, value := range attributes(b[sizeofDiagMessage:]) {
		if kind == diagV6Only {
			l.v6Only = uint8Of(value) != 0
		}
	}
	return l, nil
}

// arrival says where a packet came in.
type arrival struct {
	device     uint32 // 0: unknown
	vrf        uint32 // the VRF that the device is in
	acrossVRFs bool   // net.ipv4.tcp_l3mdev_accept
}

// takes reports whether the socket would get a packet to dst (inet_lhash2_lookup).
func (l listener) takes(dst netip.AddrPort, from arrival) bool {
	if l.addr.Port() != dst.Port() || !l.onDevice(from) {
		return false
	}
	own := l.addr.Addr()
	if l.family == unix.AF_INET {
		return dst.Addr().Is4() && (own.IsUnspecified() || own == dst.Addr())
	}
	if dst.Addr().Is4() {
		return !l.v6Only && (own.IsUnspecified() || own.Is4In6() && own.Unmap() == dst.Addr())
	}
	return own.IsUnspecified() || own == dst.Addr()
}

// onDevice compares the device that the socket is bound to (inet_sk_bound_dev_eq).
func (l listener) onDevice(from arrival) bool {
	if l.device == 0 {
		return from.vrf == 0 || from.acrossVRFs
	}
	return from.device == 0 || l.device == from.device || l.device == from.vrf
}
