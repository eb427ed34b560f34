package probe

import (
	"errors"
	"fmt"
	"strings"
	"syscall"

	"github.com/cilium/ebpf/btf"
)

// errNoTracepoint says that the kernel has no such tracepoint.
var errNoTracepoint = errors.New("this kernel has no such tracepoint")

// tracepointArgs returns how many arguments a tracepoint passes, from the type
// btf_trace_NAME: a pointer to a function whose first parameter is the
// registrant's own data (include/linux/tracepoint.h).
func tracepointArgs(kernel *btf.Spec, name string) (int, error) {
	var def *btf.Typedef
	if err := kernel.TypeByName("btf_trace_"+name, &def); err != nil {
		if errors.Is(err, btf.ErrNotFound) {
			return 0, errNoTracepoint
		}
		return 0, fmt.Errorf("find tracepoint %s in BTF: %w", name, err)
	}
	ptr, ok := def.Type.(*btf.Pointer)
	if !ok {
		return 0, fmt.Errorf("tracepoint %s: BTF type is %T, not a pointer", name, def.Type)
	}
	proto, ok := ptr.Target.(*btf.FuncProto)
	if !ok || len(proto.Params) == 0 {
		return 0, fmt.Errorf("tracepoint %s: BTF type is %T, not a function", name, ptr.Target)
	}
	return len(proto.Params) - 1, nil
}

// reasonEnums are what this kernel calls its reasons; nil where it gives none.
type reasonEnums struct {
	drops, resets reasons
}

func readReasonEnums(kernel *btf.Spec) reasonEnums {
	return reasonEnums{
		drops:  readReasons(kernel, "skb_drop_reason", "SKB_DROP_REASON_", "SKB_"),
		resets: readReasons(kernel, "sk_rst_reason", "SK_RST_REASON_"),
	}
}

// reasons are the names of an enum of the running kernel, without their common prefix.
type reasons map[int32]string

// readReasons reads an enum; of the prefixes the first that a name has is cut off.
func readReasons(kernel *btf.Spec, enum string, prefixes ...string) reasons {
	var e *btf.Enum
	if err := kernel.TypeByName(enum, &e); err != nil {
		return nil // older kernels give no reasons
	}
	names := make(reasons, len(e.Values))
	for _, v := range e.Values {
		for _, prefix := range prefixes {
			if name, ok := strings.CutPrefix(v.Name, prefix); ok {
				names[int32(v.Value)] = name
				break
			}
		}
	}
	return names
}

// refusalReason is the drop reason that a kernel which gives none would give, from
// the errno with which routing refused the packet. ip_rcv_finish_core
// (net/ipv4/ip_input.c) knows reverse-path filtering by it.
func refusalReason(errno syscall.Errno) string {
	if errno == syscall.EXDEV {
		return "IP_RPFILTER"
	}
	return ""
}

// harmlessReasons are drop reasons that are never a fault of the path: the
// packet was used up, was for somebody else, or belongs to TCP's own bookkeeping
// of a connection that works (include/net/dropreason-core.h).
var harmlessReasons = map[string]bool{
	"CONSUMED": true, "NOT_DROPPED_YET": true, "QUEUE_PURGE": true, "OTHERHOST": true,
	"PACKET_SOCK_ERROR": true, "UNHANDLED_PROTO": true, "DUP_FRAG": true, "SOCKET_FILTER": true,
	"TCP_OLD_DATA": true, "TCP_OVERWINDOW": true, "TCP_OFOMERGE": true, "TCP_RFC7323_PAWS": true,
	"TCP_RFC7323_PAWS_ACK": true, "TCP_RFC7323_TW_PAWS": true, "TCP_RFC7323_TSECR": true, "TCP_OLD_SEQUENCE": true,
	"TCP_INVALID_SEQUENCE": true, "TCP_INVALID_END_SEQUENCE": true, "TCP_INVALID_ACK_SEQUENCE": true,
	"TCP_RESET": true, "TCP_CLOSE": true, "TCP_FASTOPEN": true, "TCP_OLD_ACK": true, "TCP_TOO_OLD_ACK": true,
	"TCP_ACK_UNSENT_DATA": true, "TCP_OFO_QUEUE_PRUNE": true, "TCP_OFO_DROP": true, "TCP_ABORT_ON_DATA": true,
}

// ignoredBits packs the harmless reasons that this kernel has for the map of the
// program trace_drop: bit n stands for reason n.
func ignoredBits(r reasons, words int) []uint64 {
	bits := make([]uint64, words)
	for value, name := range r {
		if harmlessReasons[name] && value >= 0 && int(value) < words*64 {
			bits[value/64] |= 1 << (value % 64)
		}
	}
	return bits
}
