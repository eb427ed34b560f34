package netstate

import (
	"encoding/binary"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/replypath/replypath/pkg/trace"
)

// routeLookup asks what `ip route get` asks. Unlike the netlink library's
// RouteGetWithOptions it can say protocol and ports, which routing rules look
// at. withSource false leaves the source to the kernel; fib asks for the route
// that matched (RTM_F_FIB_MATCH, 4.13) instead of the path that it gives.
func routeLookup(f flow, withSource, fib bool) *nl.NetlinkRequest {
	request := nl.NewNetlinkRequest(unix.RTM_GETROUTE, 0)
	message := &nl.RtMsg{}
	message.Family = familyOf(f.dst)
	message.Dst_len = uint8(f.dst.BitLen())
	if f.dst.Is4() {
		message.Flags |= unix.RTM_F_LOOKUP_TABLE // IPv6 always tells the table, and its strict check refuses the flag
	}
	if fib {
		message.Flags |= unix.RTM_F_FIB_MATCH
	}
	request.AddData(message)
	request.AddData(nl.NewRtAttr(unix.RTA_DST, f.dst.AsSlice()))
	if withSource && f.src.IsValid() {
		message.Src_len = uint8(f.src.BitLen())
		request.AddData(nl.NewRtAttr(unix.RTA_SRC, f.src.AsSlice()))
	}
	addNonZero(request, unix.RTA_IIF, f.iif)
	addNonZero(request, unix.RTA_OIF, f.oif)
	addNonZero(request, unix.RTA_MARK, f.mark)
	if f.hasPorts() {
		request.AddData(nl.NewRtAttr(unix.RTA_IP_PROTO, nl.Uint8Attr(uint8(f.protocol))))
		request.AddData(nl.NewRtAttr(unix.RTA_SPORT, binary.BigEndian.AppendUint16(nil, f.sport)))
		request.AddData(nl.NewRtAttr(unix.RTA_DPORT, binary.BigEndian.AppendUint16(nil, f.dport)))
	}
	return request
}

func addNonZero(request *nl.NetlinkRequest, kind int, value uint32) {
	if value != 0 {
		request.AddData(nl.NewRtAttr(kind, nl.Uint32Attr(value)))
	}
}

// routeDump asks for the routes of one table, or of all (table 0). kind 0 asks for all types.
func routeDump(family uint8, table uint32, kind uint8) *nl.NetlinkRequest {
	request := nl.NewNetlinkRequest(unix.RTM_GETROUTE, unix.NLM_F_DUMP)
	message := &nl.RtMsg{}
	message.Family = family
	message.Type = kind
	request.AddData(message)
	addNonZero(request, unix.RTA_TABLE, table)
	return request
}

// rawMessage is a fixed header, as the kernel lays it out.
type rawMessage []byte

func (m rawMessage) Len() int          { return len(m) }
func (m rawMessage) Serialize() []byte { return m }

// ruleDump asks for the routing rules of a family.
func ruleDump(family uint8) *nl.NetlinkRequest {
	request := nl.NewNetlinkRequest(unix.RTM_GETRULE, unix.NLM_F_DUMP)
	header := make(rawMessage, sizeofRuleHeader)
	header[0] = family
	request.AddData(header)
	return request
}

// linkGet asks for one device.
func linkGet(index uint32) *nl.NetlinkRequest {
	request := nl.NewNetlinkRequest(unix.RTM_GETLINK, 0)
	message := nl.NewIfInfomsg(unix.AF_UNSPEC)
	message.Index = int32(index)
	request.AddData(message)
	return request
}

// allDevices is NETCONFA_IFINDEX_ALL.
const allDevices = ^uint32(0)

// netconfGet asks for the IP settings of one device, or of conf/all (allDevices).
func netconfGet(family uint8, index uint32) *nl.NetlinkRequest {
	request := nl.NewNetlinkRequest(unix.RTM_GETNETCONF, 0)
	request.AddData(rawMessage{family, 0, 0, 0})
	request.AddData(nl.NewRtAttr(netconfIndex, nl.Uint32Attr(index)))
	return request
}

// neighborGet asks for one neighbour entry, in whatever state it is (5.0).
func neighborGet(addr netip.Addr, index uint32) *nl.NetlinkRequest {
	request := nl.NewNetlinkRequest(unix.RTM_GETNEIGH, 0)
	header := make(rawMessage, unix.SizeofNdMsg)
	header[0] = familyOf(addr)
	binary.NativeEndian.PutUint32(header[4:], index)
	request.AddData(header)
	request.AddData(nl.NewRtAttr(unix.NDA_DST, addr.AsSlice()))
	return request
}

// neighborDump asks for the neighbours of a family on one device, or on all (index 0).
func neighborDump(family uint8, index uint32) *nl.NetlinkRequest {
	request := nl.NewNetlinkRequest(unix.RTM_GETNEIGH, unix.NLM_F_DUMP)
	header := make(rawMessage, unix.SizeofNdMsg)
	header[0] = family
	request.AddData(header)
	addNonZero(request, unix.NDA_IFINDEX, index)
	return request
}

// listenerDump asks for the sockets of a family that listen on a port (struct
// inet_diag_req_v2 with a filter program). Sockets of UDP that are connected to
// nobody are in state TCP_CLOSE.
func listenerDump(protocol trace.Protocol, family uint8, port uint16) *nl.NetlinkRequest {
	state := tcpListen
	if protocol == trace.UDP {
		state = tcpClose
	}
	request := nl.NewNetlinkRequest(unix.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP)
	header := make(rawMessage, sizeofDiagRequest)
	header[0] = family
	header[1] = uint8(protocol)
	binary.NativeEndian.PutUint32(header[4:], 1<<state)
	request.AddData(header)
	request.AddData(portFilter(port))
	return request
}

// portFilter makes inet_diag tell of sockets with one local port only.
func portFilter(port uint16) *nl.RtAttr {
	// Two steps of inet_diag's filter: source port >= port, source port <= port. The port is the "no" field of a
	// following no-op. Jumps are in bytes from the step; a jump 4 beyond the end rejects (inet_diag_bc_run).
	var program []byte
	step := func(code, yes uint8, no uint16) {
		program = append(program, code, yes)
		program = binary.NativeEndian.AppendUint16(program, no)
	}
	step(diagSourceGE, 8, 20)
	step(diagNop, 0, port)
	step(diagSourceLE, 8, 12)
	step(diagNop, 0, port)
	return nl.NewRtAttr(diagFilter, program)
}
