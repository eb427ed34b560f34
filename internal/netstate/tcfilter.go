package netstate

import (
	"encoding/binary"

	"github.com/replypath/replypath/pkg/trace"
)

// Attributes of tc filters (include/uapi/linux/rtnetlink.h, pkt_cls.h).
const (
	sizeofTCMessage = 20 // struct tcmsg
	tcKind          = 1  // TCA_KIND
	tcOptions       = 2  // TCA_OPTIONS
	tcChain         = 11 // TCA_CHAIN

	bpfName         = 7  // TCA_BPF_NAME
	bpfFlags        = 8  // TCA_BPF_FLAGS
	bpfID           = 11 // TCA_BPF_ID
	bpfDirectAction = 1  // TCA_BPF_FLAG_ACT_DIRECT

	actionKind       = 1 // TCA_ACT_KIND
	actionOptions    = 2 // TCA_ACT_OPTIONS
	actionStatistics = 4 // TCA_ACT_STATS
	actionShot       = 2 // TC_ACT_SHOT
	statisticsQueue  = 3 // TCA_STATS_QUEUE
)

// actionAttribute is the attribute of a filter's options that holds its actions.
var actionAttribute = map[string]uint16{
	"u32": 7, "flower": 3, "matchall": 2, "basic": 3, "fw": 4, "bpf": 1, "cgroup": 1, "flow": 9, "route": 6,
}

// policeAttribute is the one that holds a police action of the old kind.
var policeAttribute = map[string]uint16{"u32": 6, "fw": 2, "bpf": 2, "basic": 4, "cgroup": 2, "flow": 10, "route": 5}

// parseFilter reads a struct tcmsg with its attributes; false for what drops nothing.
func parseFilter(b []byte) (trace.Attachment, bool) {
	if len(b) < sizeofTCMessage {
		return trace.Attachment{}, false
	}
	info := binary.NativeEndian.Uint32(b[16:])
	a := trace.Attachment{
		Handle: binary.NativeEndian.Uint32(b[8:]), Priority: uint16(info >> 16),
		Protocol: uint16(info)<<8 | uint16(info)>>8&0xff, // in network order
	}
	var options []byte
	for kind, value := range attributes(b[sizeofTCMessage:]) {
		switch kind {
		case tcKind:
			a.Kind = textOf(value)
		case tcOptions:
			options = value
		case tcChain:
			a.Chain = uint32Of(value)
		}
	}
	return a, readOptions(&a, options)
}

// readOptions reads what the filter does with what it matches, and reports
// whether it may drop: a program that decides itself, or an action that does.
func readOptions(a *trace.Attachment, options []byte) bool {
	drops := false
	for kind, value := range attributes(options) {
		switch {
		case kind == actionAttribute[a.Kind]:
			drops = readActions(a, value) || drops
		case kind == policeAttribute[a.Kind]:
			a.Action, drops = "police", true
		case a.Kind != "bpf":
		case kind == bpfName:
			a.Name = textOf(value)
		case kind == bpfID:
			a.Program = uint32Of(value)
		case kind == bpfFlags:
			drops = drops || uint32Of(value)&bpfDirectAction != 0
		}
	}
	return drops
}

// readActions looks for one that drops in a list of actions.
func readActions(a *trace.Attachment, list []byte) bool {
	for _, action := range attributes(list) {
		var name string
		var shot bool
		var dropped uint64
		var counted bool
		for kind, value := range attributes(action) {
			switch kind {
			case actionKind:
				name = textOf(value)
			case actionOptions:
				shot = isShot(value)
			case actionStatistics:
				dropped, counted = droppedBy(value)
			}
		}
		if shot || name == "police" {
			a.Action, a.Dropped, a.Counted = name, dropped, counted
			return true
		}
	}
	return false
}

// isShot reports whether an action's parameters say that it drops: they begin
// with struct tc_gen (index, capabilities, action), under number 2 for gact and most others.
func isShot(options []byte) bool {
	const parameters = 2
	for kind, value := range attributes(options) {
		if kind == parameters && len(value) >= 12 {
			return int32(binary.NativeEndian.Uint32(value[8:])) == actionShot
		}
	}
	return false
}

// droppedBy reads struct gnet_stats_queue: qlen, backlog, drops.
func droppedBy(statistics []byte) (uint64, bool) {
	for kind, value := range attributes(statistics) {
		if kind == statisticsQueue && len(value) >= 12 {
			return uint64(binary.NativeEndian.Uint32(value[8:])), true
		}
	}
	return 0, false
}

// Attributes of a device's XDP programs (include/uapi/linux/if_link.h).
const (
	xdpAttached  = 2 // IFLA_XDP_ATTACHED
	xdpProgram   = 4 // IFLA_XDP_PROG_ID
	xdpNative    = 5 // IFLA_XDP_DRV_PROG_ID
	xdpGeneric   = 6 // IFLA_XDP_SKB_PROG_ID
	xdpOffloaded = 7 // IFLA_XDP_HW_PROG_ID
	xdpSKBMode   = 2 // XDP_ATTACHED_SKB
)

// xdpPrograms are the ids of a device's XDP programs; 0: none.
type xdpPrograms struct{ native, generic uint32 }

// parseXDP reads IFLA_XDP. Kernels before 4.19 tell one program and its mode only.
func parseXDP(b []byte) xdpPrograms {
	var found xdpPrograms
	var mode uint8
	var program uint32
	for kind, value := range attributes(b) {
		switch kind {
		case xdpAttached:
			mode = uint8Of(value)
		case xdpProgram:
			program = uint32Of(value)
		case xdpNative, xdpOffloaded:
			found.native = uint32Of(value)
		case xdpGeneric:
			found.generic = uint32Of(value)
		}
	}
	switch {
	case found != xdpPrograms{}:
	case mode == xdpSKBMode:
		found.generic = program
	default:
		found.native = program
	}
	return found
}

// attachments lists the programs.
func (x xdpPrograms) attachments() []trace.Attachment {
	var found []trace.Attachment
	if x.native != 0 {
		found = append(found, trace.Attachment{Point: trace.XDPNative, Program: x.native})
	}
	if x.generic != 0 {
		found = append(found, trace.Attachment{Point: trace.XDPGeneric, Program: x.generic})
	}
	return found
}
