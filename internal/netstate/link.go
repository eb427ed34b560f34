package netstate

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// link is a network device (struct ifinfomsg and its attributes).
type link struct {
	index    uint32
	name     string
	kind     string // IFLA_INFO_KIND; "" for a physical device
	up       bool
	master   uint32
	vrfTable uint32 // of a VRF device
	xdp      xdpPrograms
}

// parseLink reads a struct ifinfomsg with its attributes.
func parseLink(b []byte) (link, error) {
	if len(b) < unix.SizeofIfInfomsg {
		return link{}, errTruncated
	}
	l := link{
		index: binary.NativeEndian.Uint32(b[4:]),
		up:    binary.NativeEndian.Uint32(b[8:])&unix.IFF_UP != 0,
	}
	for kind, value := range attributes(b[unix.SizeofIfInfomsg:]) {
		switch kind {
		case unix.IFLA_IFNAME:
			l.name = textOf(value)
		case unix.IFLA_MASTER:
			l.master = uint32Of(value)
		case unix.IFLA_XDP:
			l.xdp = parseXDP(value)
		case unix.IFLA_LINKINFO:
			l.setInfo(value)
		}
	}
	return l, nil
}

// vrfTableAttribute is IFLA_VRF_TABLE.
const vrfTableAttribute = 1

func (l *link) setInfo(b []byte) {
	var data []byte
	for kind, value := range attributes(b) {
		switch kind {
		case unix.IFLA_INFO_KIND:
			l.kind = textOf(value)
		case unix.IFLA_INFO_DATA:
			data = value
		}
	}
	if l.kind != "vrf" {
		return
	}
	for kind, value := range attributes(data) {
		if kind == vrfTableAttribute {
			l.vrfTable = uint32Of(value)
		}
	}
}

// Attributes of struct netconfmsg (include/uapi/linux/netconf.h).
const (
	sizeofNetconf     = 4
	netconfIndex      = 1
	netconfForwarding = 2
	netconfRPFilter   = 3
)

// netconf holds IP settings of a device or of conf/all.
type netconf struct {
	forwarding bool
	rpFilter   int
}

// parseNetconf reads a struct netconfmsg with its attributes.
func parseNetconf(b []byte) (netconf, error) {
	if len(b) < sizeofNetconf {
		return netconf{}, errTruncated
	}
	var c netconf
	for kind, value := range attributes(b[sizeofNetconf:]) {
		switch kind {
		case netconfForwarding:
			c.forwarding = uint32Of(value) != 0
		case netconfRPFilter:
			c.rpFilter = int(int32(uint32Of(value)))
		}
	}
	return c, nil
}
