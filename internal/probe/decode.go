package probe

import (
	"errors"
	"net/netip"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/replypath/replypath/pkg/trace"
)

// errRecord says that a ring buffer record is not of the ABI's size.
var errRecord = errors.New("record is not of the event's size")

const (
	eventSize     = int(unsafe.Sizeof(dropEvent{}))
	conntrackSize = int(unsafe.Sizeof(dropEventConntrack{}))
	tunnelSize    = int(unsafe.Sizeof(dropEventTunnel{}))
	verdictSize   = int(unsafe.Sizeof(dropEventVerdict{}))
	payloadOffset = int(unsafe.Offsetof(dropEventDns{}.Payload))
	hopSize       = int(unsafe.Sizeof(dropEventHop{}))
)

// maxCached bounds the caches of names, which the kernel's own variety keeps small.
const maxCached = 4096

// decoder turns records into events.
type decoder struct {
	reasons reasonEnums
	symbols *symbols
	clock   clock
	names   map[[16]int8]string
	modules moduleReasons
}

func newDecoder(reasons reasonEnums, symbols *symbols) *decoder {
	return &decoder{reasons: reasons, symbols: symbols, names: make(map[[16]int8]string)}
}

// decode fills ev from a record. It keeps no reference to raw.
func (d *decoder) decode(raw []byte, ev *trace.Event) error {
	if uintptr(unsafe.Pointer(unsafe.SliceData(raw)))%8 != 0 {
		return errRecord
	}
	if len(raw) == hopSize {
		d.hop((*dropEventHop)(unsafe.Pointer(unsafe.SliceData(raw))), ev)
		return nil
	}
	if len(raw) < eventSize {
		return errRecord
	}
	e := (*dropEvent)(unsafe.Pointer(unsafe.SliceData(raw)))
	*ev = trace.Event{
		Time:          d.clock.wall(e.Time),
		Hook:          trace.Hook(e.Hook),
		Netns:         trace.Netns(e.Netns),
		Device:        trace.Device{Index: e.Ifindex, Name: d.name(e.Device)},
		Kind:          d.name(e.Kind),
		Tuple:         tuple(&e.Tuple, false),
		SKB:           e.Skb,
		Flags:         trace.TCPFlags(e.TcpFlags),
		Seq:           e.Seq,
		Ack:           e.Ack,
		Fragment:      e.Flags&uint8(dropEventFlagEVENT_FRAGMENT) != 0,
		Inner:         e.Flags&uint8(dropEventFlagEVENT_INNER) != 0,
		OtherHost:     e.Flags&uint8(dropEventFlagEVENT_OTHERHOST) != 0,
		Group:         e.IpFlags&uint8(dropIpFlagIP_FLAG_GROUP) != 0,
		Unbuilt:       e.Flags&uint8(dropEventFlagEVENT_UNBUILT) != 0,
		Short:         e.Flags&uint8(dropEventFlagEVENT_SHORT) != 0,
		HasRoute:      e.Flags&uint8(dropEventFlagEVENT_HAS_ROUTE) != 0,
		Mark:          e.Mark,
		SourceMAC:     e.SourceMac,
		InIndex:       e.InIfindex,
		OutIndex:      e.OutIfindex,
		OldState:      e.OldState,
		NewState:      e.NewState,
		ICMPType:      e.IcmpType,
		ICMPCode:      e.IcmpCode,
		Table:         e.Table,
		Length:        e.IpLen,
		ID:            e.IpId,
		TTL:           e.Ttl,
		DontFragment:  e.IpFlags&uint8(dropIpFlagIP_FLAG_DF) != 0,
		MoreFragments: e.IpFlags&uint8(dropIpFlagIP_FLAG_MF) != 0,
	}
	if ev.Inner {
		ev.Reporter = address(&e.Reporter, e.Tuple.Family, false)
	}
	ev.Conntrack.Info = e.CtInfo
	if e.Flags&uint8(dropEventFlagEVENT_HAS_CONNTRACK) != 0 {
		if len(raw) < conntrackSize {
			return errRecord
		}
		c := (*dropEventConntrack)(unsafe.Pointer(unsafe.SliceData(raw)))
		ev.Conntrack.Original = tuple(&c.Conntrack.Original, false)
		ev.Conntrack.Reply = tuple(&c.Conntrack.Reply, false)
	}
	if e.Flags&uint8(dropEventFlagEVENT_TUNNEL) != 0 {
		if len(raw) < tunnelSize {
			return errRecord
		}
		ev.Carried = carried(&(*dropEventTunnel)(unsafe.Pointer(unsafe.SliceData(raw))).Tunnel)
	}
	if e.Dns&uint8(dropDnsFlagDNS_MESSAGE) != 0 {
		if len(raw) < payloadOffset {
			return errRecord
		}
		m := (*dropEventDns)(unsafe.Pointer(unsafe.SliceData(raw))) // both sizes begin alike
		if uint64(m.Captured) > uint64(len(raw)-payloadOffset) {
			return errRecord
		}
		ev.Payload, ev.PayloadLength = raw[payloadOffset:payloadOffset+int(m.Captured)], m.Length
		ev.PayloadOnly = e.Dns&uint8(dropDnsFlagDNS_ALONE) != 0
		if ev.Hook != trace.HookDrop {
			ev.Datagram = e.Symbol
		}
	}
	if e.Pid != 0 {
		ev.Process = trace.Process{PID: e.Pid, PGID: e.Pgid, Comm: d.name(e.Comm)}
	}
	if ev.SKB == 0 && ev.Hook != trace.HookRouteMiss4 && ev.Hook != trace.HookRouteMiss6 && ev.Hook != trace.HookAstray || ev.Unbuilt {
		// A socket shows the IPv4 addresses of a dual-stack listener in their mapped form.
		ev.Tuple = tuple(&e.Tuple, true)
	}
	switch ev.Hook {
	case trace.HookDrop:
		ev.Reason = d.dropReason(e.Reason)
		ev.Symbol = d.symbols.name(e.Symbol)
		d.upcall(e, ev)
		if e.Input != 0 {
			ev.Input = d.symbols.name(e.Input)
		}
	case trace.HookResetSent:
		ev.Reason = d.resetReason(e.Reason)
	case trace.HookRouteMiss4:
		ev.Errno = syscall.Errno(-e.Reason)
	case trace.HookRouteMiss6:
		ev.Errno = rejectErrno(e.Reason)
	case trace.HookAstray:
		switch {
		case e.Reason == 0: // there is a way, by another device than lo
		case ev.Tuple.Is6():
			ev.Errno = rejectErrno(e.Reason)
		default:
			ev.Errno = syscall.Errno(-e.Reason)
		}
	case trace.HookNeighborFailed:
		ev.NextHop = address(&e.Tuple.Daddr, e.Tuple.Family, false)
		ev.Tuple = trace.Tuple{}
	case trace.HookVerdict:
		if len(raw) < verdictSize {
			return errRecord
		}
		v := (*dropEventVerdict)(unsafe.Pointer(unsafe.SliceData(raw)))
		ev.Tuple = trace.Tuple{}
		ev.Verdict = trace.Verdict{
			Hook: netfilterHook(e.NfFamily, e.NfHook), Family: netfilterFamilies[e.NfFamily],
			By: verdictBy[verdictFunction(e.Function)], Table: text(&v.Table), Chain: text(&v.Chain),
		}
	}
	return nil
}

// hop fills ev from the short record of a datagram whose payload was told before.
func (d *decoder) hop(e *dropEventHop, ev *trace.Event) {
	*ev = trace.Event{
		Time:          d.clock.wall(e.Time),
		Hook:          trace.Hook(e.Hook),
		Netns:         trace.Netns(e.Netns),
		Device:        trace.Device{Index: e.Ifindex, Name: d.name(e.Device)},
		Tuple:         tuple(&e.Tuple, false),
		SKB:           e.Skb,
		InIndex:       e.InIfindex,
		OtherHost:     e.Flags&uint8(dropEventFlagEVENT_OTHERHOST) != 0,
		MoreFragments: e.IpFlags&uint8(dropIpFlagIP_FLAG_MF) != 0,
		PayloadOnly:   true,
		Datagram:      e.Key,
	}
}

func (d *decoder) dropReason(reason int32) string {
	if reason < 0 && d.reasons.drops == nil {
		return refusalReason(syscall.Errno(-reason))
	}
	if name, ok := d.reasons.drops[reason]; ok || reason>>subsystemShift <= 0 {
		return name
	}
	return d.modules.name(reason)
}

// upcall fills in why Open vSwitch could not ask its daemon about a packet.
func (d *decoder) upcall(e *dropEvent, ev *trace.Event) {
	if verdictFunction(e.Function) == verdictFunctionFUNCTION_UPCALL {
		ev.Symbol = upcallFunction
	}
	if e.Reason < 0 && strings.HasPrefix(ev.Symbol, "ovs_dp_") {
		ev.Reason, ev.Errno = "", syscall.Errno(-e.Reason)
	}
}

// netfilterFamilies are the protocol families by their numbers (include/uapi/linux/netfilter.h).
var netfilterFamilies = map[uint8]string{
	unix.NFPROTO_INET: "inet", unix.NFPROTO_IPV4: "ip", unix.NFPROTO_ARP: "arp",
	unix.NFPROTO_NETDEV: "netdev", unix.NFPROTO_BRIDGE: "bridge", unix.NFPROTO_IPV6: "ip6",
}

// verdictBy says what kind of function gave a verdict.
var verdictBy = map[verdictFunction]trace.VerdictBy{
	verdictFunctionFUNCTION_HOOK_SLOW: trace.ByHook, verdictFunctionFUNCTION_NFT_CHAIN: trace.ByChain,
	verdictFunctionFUNCTION_IP_TABLE: trace.ByTable, verdictFunctionFUNCTION_CONNTRACK: trace.ByConntrack,
}

// netfilterHook names a hook by its number: enum nf_inet_hooks; for devices enum nf_dev_hooks.
func netfilterHook(family, hook uint8) trace.NetfilterHook {
	hooks := []trace.NetfilterHook{trace.Prerouting, trace.Input, trace.Forward, trace.Output, trace.Postrouting, trace.Ingress}
	if family == unix.NFPROTO_NETDEV {
		hooks = []trace.NetfilterHook{trace.Ingress, trace.Egress}
	}
	if int(hook) >= len(hooks) {
		return ""
	}
	return hooks[hook]
}

// text makes a C string a Go string. Verdicts are rare: it may allocate.
func text(c *[64]int8) string {
	b := make([]byte, 0, len(c))
	for _, ch := range c {
		if ch == 0 {
			break
		}
		b = append(b, byte(ch))
	}
	return string(b)
}

// Reset reasons that the kernel's enum does not have: bpf/tcp.bpf.c.
const resetNobodyTook = -2

func (d *decoder) resetReason(reason int32) string {
	if reason == resetNobodyTook {
		return "NO_SOCKET"
	}
	return d.reasons.resets[reason]
}

// rejectErrno is the error that a lookup gives for a route type: fib6_prop in net/ipv6/route.c.
func rejectErrno(routeType int32) syscall.Errno {
	switch routeType {
	case unix.RTN_BLACKHOLE:
		return syscall.EINVAL
	case unix.RTN_PROHIBIT:
		return syscall.EACCES
	}
	return syscall.EHOSTUNREACH
}

func tuple(t *dropTuple, unmap bool) trace.Tuple {
	src, dst := address(&t.Saddr, t.Family, unmap), address(&t.Daddr, t.Family, unmap)
	return trace.Tuple{
		Protocol: trace.Protocol(t.Protocol),
		Src:      netip.AddrPortFrom(src, t.Sport),
		Dst:      netip.AddrPortFrom(dst, t.Dport),
	}
}

func address(b *[16]uint8, family uint8, unmap bool) netip.Addr {
	switch family {
	case unix.AF_INET:
		return netip.AddrFrom4([4]byte(b[:4]))
	case unix.AF_INET6:
		a := netip.AddrFrom16(*b)
		if unmap {
			return a.Unmap()
		}
		return a
	}
	return netip.Addr{}
}

// name makes a C string a Go string, the same one each time.
func (d *decoder) name(c [16]int8) string {
	if c[0] == 0 {
		return ""
	}
	if s, ok := d.names[c]; ok {
		return s
	}
	b := make([]byte, 0, len(c))
	for _, ch := range c {
		if ch == 0 {
			break
		}
		b = append(b, byte(ch))
	}
	if len(d.names) >= maxCached {
		clear(d.names)
	}
	s := string(b)
	d.names[c] = s
	return s
}

// clock turns the kernel's monotonic time into wall time.
type clock struct {
	offset  int64  // nanoseconds to add
	refresh uint64 // monotonic time after which the offset is read again: the wall clock may be set
}

const clockRefresh = 10 * uint64(time.Second)

func (c *clock) wall(mono uint64) time.Time {
	if mono >= c.refresh {
		var ts unix.Timespec
		if unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) == nil {
			now := uint64(ts.Nano())
			c.offset = time.Now().UnixNano() - int64(now)
			c.refresh = now + clockRefresh
		}
	}
	return time.Unix(0, int64(mono)+c.offset)
}
