package netstate

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/replypath/replypath/pkg/trace"
)

// Attribute and limits of the search for a receiver.
const (
	diagMemory   = 7    // INET_DIAG_SKMEMINFO (include/uapi/linux/inet_diag.h)
	maxReceivers = 8    // sockets that share a port
	maxOwners    = 8192 // that are asked for their files
)

// readReceivers looks for the sockets that take the question's packet, and for their owners.
func (r *reading) readReceivers(ctx context.Context, state *trace.HostState) error {
	diag, err := dialSocket(unix.NETLINK_SOCK_DIAG, false)
	if err != nil {
		return err
	}
	defer diag.Close()
	packet := r.q.Packet
	families := []uint8{unix.AF_INET6}
	if packet.Dst.Addr().Is4() {
		families = []uint8{unix.AF_INET, unix.AF_INET6}
	}
	var errs []error
	for _, family := range families {
		err := diag.exchange(ctx, receiverDump(family, packet), func(b []byte) bool {
			if s, ok := parseReceiver(b, packet); ok {
				state.Sockets = append(state.Sockets, s)
			}
			return len(state.Sockets) < maxReceivers
		})
		if err != nil {
			errs = append(errs, fmt.Errorf("list sockets: %w", err))
		}
	}
	nameOwners(ctx, state.Sockets)
	return errors.Join(errs...)
}

// receiverDump asks for the sockets of a protocol that have a packet's destination port.
func receiverDump(family uint8, packet trace.Tuple) *nl.NetlinkRequest {
	request := nl.NewNetlinkRequest(unix.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP)
	header := make(rawMessage, sizeofDiagRequest)
	header[0] = family
	header[1] = uint8(packet.Protocol)
	header[2] = 1 << (diagMemory - 1)
	binary.NativeEndian.PutUint32(header[4:], ^uint32(0))
	request.AddData(header)
	request.AddData(portFilter(packet.Dst.Port()))
	return request
}

// parseReceiver reads a struct inet_diag_msg; false for a socket that does not take the packet.
func parseReceiver(b []byte, packet trace.Tuple) (trace.Socket, bool) {
	if len(b) < sizeofDiagMessage {
		return trace.Socket{}, false
	}
	end := func(raw, port []byte) netip.AddrPort {
		if b[0] == unix.AF_INET {
			raw = raw[:4]
		}
		return netip.AddrPortFrom(addressOf(raw).Unmap(), binary.BigEndian.Uint16(port))
	}
	s := trace.Socket{
		Protocol: packet.Protocol, Local: end(b[8:24], b[4:6]), Remote: end(b[24:40], b[6:8]),
		Used: binary.NativeEndian.Uint32(b[56:]), Inode: uint64(binary.NativeEndian.Uint32(b[68:])),
	}
	for kind, value := range attributes(b[sizeofDiagMessage:]) {
		if kind == diagMemory && len(value) >= 36 {
			s.Used, s.Buffer, s.Drops = uint32Of(value), uint32Of(value[4:]), uint32Of(value[32:])
		}
	}
	takes := s.Local.Port() == packet.Dst.Port() && (s.Local.Addr().IsUnspecified() || s.Local.Addr() == packet.Dst.Addr())
	if s.Remote.Port() == 0 {
		s.Remote = netip.AddrPort{}
	}
	return s, takes && (!s.Remote.IsValid() || s.Remote == packet.Src)
}

// nameOwners finds a process that has each socket open: /proc shows sockets by their inode.
func nameOwners(ctx context.Context, sockets []trace.Socket) {
	wanted := make(map[string]*trace.Socket)
	for i := range sockets {
		if sockets[i].Inode != 0 {
			wanted["socket:["+strconv.FormatUint(sockets[i].Inode, 10)+"]"] = &sockets[i]
		}
	}
	if len(wanted) == 0 {
		return
	}
	processes, err := os.ReadDir("/proc")
	if err != nil {
		return
	}
	// Mostly it is a process of the calling thread's own namespace: all others' files are looked at last.
	here, _ := os.Readlink("/proc/thread-self/ns/net")
	for _, near := range []bool{true, false} {
		for i, p := range processes {
			pid, err := strconv.ParseUint(p.Name(), 10, 32)
			if err != nil {
				continue
			}
			if len(wanted) == 0 || i > maxOwners || ctx.Err() != nil {
				return
			}
			if space, err := os.Readlink("/proc/" + p.Name() + "/ns/net"); err == nil && (space == here) == near || err != nil && !near {
				nameOwner(uint32(pid), wanted)
			}
		}
	}
}

// nameOwner looks for wanted sockets among the files of a process.
func nameOwner(pid uint32, wanted map[string]*trace.Socket) {
	dir := "/proc/" + strconv.FormatUint(uint64(pid), 10)
	files, err := os.ReadDir(dir + "/fd")
	if err != nil {
		return
	}
	for _, f := range files {
		target, err := os.Readlink(dir + "/fd/" + f.Name())
		s := wanted[target]
		if err != nil || s == nil {
			continue
		}
		comm, _ := os.ReadFile(dir + "/comm")
		s.Process = trace.Process{PID: pid, Comm: strings.TrimSpace(string(comm))}
		delete(wanted, target)
	}
}
