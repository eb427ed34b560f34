package netfilter

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"os"
	"runtime"
	"time"

	"github.com/replypath/replypath/pkg/trace"
	"golang.org/x/sys/unix"
)

// TraceTable is the table that a Tracer adds, in each family that it needs.
const TraceTable = "replypath-trace"

// ErrNoOwner says that the kernel cannot tie a table to the socket that made it
// (before 5.12), so that a rule might be left behind.
var ErrNoOwner = errors.New("this kernel cannot tie an nftables table to its owner (5.12 can): a rule might be left behind")

// Tracer asks nftables itself which rule drops packets: its own tracing is
// switched on for certain tuples, by a rule in a table of its own that the kernel removes
// with the Tracer's socket, whatever becomes of the process.
type Tracer struct {
	owner, listener *socket
	packets         map[uint32]trace.Tuple // by trace id, that the kernel told the headers of
}

// TracedDrop is a drop as nftables told it.
type TracedDrop struct {
	Tuple        trace.Tuple
	Family       string
	Table, Chain string
	Handle       uint64 // 0: the policy
}

// Trace switches tracing on, in the calling thread's namespace, for packets
// with one of the tuples. Devices, if not empty, are watched at ingress too.
func Trace(tuples []trace.Tuple, ingress []string) (*Tracer, error) {
	t := &Tracer{packets: map[uint32]trace.Tuple{}}
	var err error
	if t.listener, err = openSocket(time.Now()); err != nil {
		return nil, err
	}
	if err = unix.Bind(t.listener.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err == nil {
		err = unix.SetsockoptInt(t.listener.fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, unix.NFNLGRP_NFTRACE)
	}
	if err != nil {
		t.Close()
		return nil, fmt.Errorf("listen for traces: %w", err)
	}
	if t.owner, err = openSocket(time.Now().Add(timeLimit)); err != nil {
		t.Close()
		return nil, err
	}
	if err = t.owner.batch(traceRules(familyInet, tuples, []traceHook{{"pre", hookPrerouting, ""}, {"out", hookOutput, ""}})); err != nil {
		t.Close()
		if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL) {
			err = ErrNoOwner
		}
		return nil, fmt.Errorf("add table %s: %w", TraceTable, err)
	}
	// What follows is more than most namespaces need, and some kernels lack it.
	_ = t.owner.batch(traceRules(familyBridge, tuples, []traceHook{{"pre", hookPrerouting, ""}, {"out", hookOutput, ""}}))
	for _, device := range ingress {
		_ = t.owner.batch(traceRules(familyNetdev, tuples, []traceHook{{"in", hookNetdevIngress, device}}))
	}
	return t, nil
}

// CanTrace tries what Trace does, in a network namespace that goes at once.
func CanTrace() error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine, and the namespace with it
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			result <- fmt.Errorf("make network namespace: %w", err)
			return
		}
		t, err := Trace(nil, nil)
		if err == nil {
			t.Close()
		}
		result <- err
	}()
	return <-result
}

// Close ends tracing: the kernel removes the tables.
func (t *Tracer) Close() {
	for _, s := range []*socket{t.owner, t.listener} {
		if s != nil {
			s.close()
		}
	}
}

// Drop waits for a packet with one of the tuples to be dropped.
func (t *Tracer) Drop(ctx context.Context) (TracedDrop, error) {
	for {
		if err := ctx.Err(); err != nil {
			return TracedDrop{}, err
		}
		t.listener.until = time.Now().Add(50 * time.Millisecond)
		b, err := t.listener.receive()
		if errors.Is(err, errTime) || errors.Is(err, os.NewSyscallError("recvfrom", unix.ENOBUFS)) {
			continue
		}
		if err != nil {
			return TracedDrop{}, fmt.Errorf("read traces: %w", err)
		}
		var found *TracedDrop
		eachMessage(b, func(kind uint16, body []byte) {
			if kind == unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_TRACE && len(body) >= 4 && found == nil {
				found = t.take(family(body[0]), body[4:])
			}
		})
		if found != nil {
			return *found, nil
		}
	}
}

// Types of trace messages (enum nft_trace_types), and attributes that x/sys/unix lacks.
const (
	traceTypePolicy = 1
	traceTypeRule   = 3
	nftaTracePolicy = 16
	mostTraced      = 1024 // packets whose headers are remembered
)

// take reads one trace message: the first of a packet in a chain holds its headers.
func (t *Tracer) take(f family, b []byte) *TracedDrop {
	var a attributeValues = *values(b)
	id := be32(a[unix.NFTA_TRACE_ID])
	if tuple, ok := headerTuple(a[unix.NFTA_TRACE_NETWORK_HEADER], a[unix.NFTA_TRACE_TRANSPORT_HEADER]); ok {
		if len(t.packets) >= mostTraced {
			clear(t.packets)
		}
		t.packets[id] = tuple
	}
	d := &TracedDrop{Tuple: t.packets[id], Family: f.String(), Table: cString(a[unix.NFTA_TRACE_TABLE]), Chain: cString(a[unix.NFTA_TRACE_CHAIN])}
	switch be32(a[unix.NFTA_TRACE_TYPE]) {
	case traceTypeRule:
		code := verdictContinue
		for kind, v := range attributes(a[unix.NFTA_TRACE_VERDICT]) {
			if kind == unix.NFTA_VERDICT_CODE {
				code = verdictCode(be32(v))
			}
		}
		d.Handle = be64(a[unix.NFTA_TRACE_RULE_HANDLE])
		if code != verdictDrop || d.Handle == 0 {
			return nil
		}
	case traceTypePolicy:
		if a[nftaTracePolicy] == nil || verdictCode(be32(a[nftaTracePolicy])) != verdictDrop {
			return nil
		}
	default:
		return nil
	}
	return d
}

// headerTuple reads the tuple from an IP header and the start of what follows it.
func headerTuple(network, transport []byte) (trace.Tuple, bool) {
	var t trace.Tuple
	if len(network) < 20 || len(transport) < 4 {
		return t, false
	}
	var src, dst netip.Addr
	switch {
	case network[0]>>4 == 4:
		t.Protocol = trace.Protocol(network[9])
		src, dst = netip.AddrFrom4([4]byte(network[12:])), netip.AddrFrom4([4]byte(network[16:]))
	case network[0]>>4 == 6 && len(network) >= 40:
		t.Protocol = trace.Protocol(network[6])
		src, dst = netip.AddrFrom16([16]byte(network[8:])), netip.AddrFrom16([16]byte(network[24:]))
	default:
		return t, false
	}
	t.Src = netip.AddrPortFrom(src, binary.BigEndian.Uint16(transport))
	t.Dst = netip.AddrPortFrom(dst, binary.BigEndian.Uint16(transport[2:]))
	return t, true
}

// traceHook is a chain of the table.
type traceHook struct {
	chain  string
	number uint32
	device string // netdev
}

// message is one request of a batch.
type message struct {
	kind   uint16
	flags  uint16
	family family
	attrs  []byte
}

// traceRules are the requests that make the table: chains before all others,
// whose rules mark the packets of the tuples for tracing and do nothing else.
func traceRules(f family, tuples []trace.Tuple, hooks []traceHook) []message {
	const ownerFlag = 2 // NFT_TABLE_F_OWNER
	name := TraceTable
	if f == familyNetdev {
		name += "-" + hooks[0].device
	}
	table := append([]byte(name), 0)
	out := []message{{unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE | unix.NLM_F_EXCL, f,
		appendAttribute(appendAttribute(nil, unix.NFTA_TABLE_NAME, table), unix.NFTA_TABLE_FLAGS, number32(ownerFlag))}}
	lowest := int32(math.MinInt32)
	for _, h := range hooks {
		hook := appendAttribute(nil, unix.NFTA_HOOK_HOOKNUM, number32(h.number))
		hook = appendAttribute(hook, unix.NFTA_HOOK_PRIORITY, number32(uint32(lowest)))
		if h.device != "" {
			hook = appendAttribute(hook, unix.NFTA_HOOK_DEV, append([]byte(h.device), 0))
		}
		chain := append([]byte(h.chain), 0)
		attrs := appendAttribute(nil, unix.NFTA_CHAIN_TABLE, table)
		attrs = appendAttribute(attrs, unix.NFTA_CHAIN_NAME, chain)
		attrs = appendAttribute(attrs, unix.NFTA_CHAIN_HOOK|unix.NLA_F_NESTED, hook)
		attrs = appendAttribute(attrs, unix.NFTA_CHAIN_TYPE, append([]byte("filter"), 0))
		out = append(out, message{unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE, f, attrs})
		for _, t := range tuples {
			rule := appendAttribute(nil, unix.NFTA_RULE_TABLE, table)
			rule = appendAttribute(rule, unix.NFTA_RULE_CHAIN, chain)
			rule = appendAttribute(rule, unix.NFTA_RULE_EXPRESSIONS|unix.NLA_F_NESTED, traceExpressions(t))
			out = append(out, message{unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE | unix.NLM_F_APPEND, f, rule})
		}
	}
	return out
}

// traceExpressions match a tuple and set nftrace.
func traceExpressions(t trace.Tuple) []byte {
	var out []byte
	expression := func(name string, data []byte) {
		e := appendAttribute(nil, unix.NFTA_EXPR_NAME, append([]byte(name), 0))
		e = appendAttribute(e, unix.NFTA_EXPR_DATA|unix.NLA_F_NESTED, data)
		out = appendAttribute(out, nftaListElem|unix.NLA_F_NESTED, e)
	}
	value := func(b []byte) []byte { return appendAttribute(nil, unix.NFTA_DATA_VALUE, b) }
	equals := func(b []byte) {
		c := appendAttribute(nil, unix.NFTA_CMP_SREG, number32(register128))
		c = appendAttribute(c, unix.NFTA_CMP_OP, number32(uint32(cmpEq)))
		expression("cmp", appendAttribute(c, unix.NFTA_CMP_DATA|unix.NLA_F_NESTED, value(b)))
	}
	meta := func(key uint32) {
		m := appendAttribute(nil, unix.NFTA_META_KEY, number32(key))
		expression("meta", appendAttribute(m, unix.NFTA_META_DREG, number32(register128)))
	}
	payload := func(base, offset int, b []byte) {
		p := appendAttribute(nil, unix.NFTA_PAYLOAD_DREG, number32(register128))
		p = appendAttribute(p, unix.NFTA_PAYLOAD_BASE, number32(uint32(base)))
		p = appendAttribute(p, unix.NFTA_PAYLOAD_OFFSET, number32(uint32(offset)))
		expression("payload", appendAttribute(p, unix.NFTA_PAYLOAD_LEN, number32(uint32(len(b)))))
		equals(b)
	}
	etherType, src, dst := uint16(unix.ETH_P_IP), 12, 16
	if t.Is6() {
		etherType, src, dst = unix.ETH_P_IPV6, 8, 24
	}
	meta(metaProtocol)
	equals(binary.BigEndian.AppendUint16(nil, etherType))
	meta(metaL4Proto)
	equals([]byte{byte(t.Protocol)})
	payload(baseNetwork, src, t.Src.Addr().AsSlice())
	payload(baseNetwork, dst, t.Dst.Addr().AsSlice())
	payload(baseTransport, 0, binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, t.Src.Port()), t.Dst.Port()))
	one := appendAttribute(nil, unix.NFTA_IMMEDIATE_DREG, number32(register128))
	expression("immediate", appendAttribute(one, unix.NFTA_IMMEDIATE_DATA|unix.NLA_F_NESTED, value([]byte{1})))
	set := appendAttribute(nil, unix.NFTA_META_KEY, number32(unix.NFT_META_NFTRACE))
	expression("meta", appendAttribute(set, unix.NFTA_META_SREG, number32(register128)))
	return out
}

func number32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }

// batch sends requests as one transaction: all are done, or none.
func (s *socket) batch(messages []message) error {
	begin := message{kind: unix.NFNL_MSG_BATCH_BEGIN}
	end := message{kind: unix.NFNL_MSG_BATCH_END}
	b := s.appendRequest(nil, begin, unix.NFNL_SUBSYS_NFTABLES, 0)
	for _, m := range messages {
		m.kind |= unix.NFNL_SUBSYS_NFTABLES << 8
		b = s.appendRequest(b, m, 0, unix.NLM_F_ACK)
	}
	b = s.appendRequest(b, end, unix.NFNL_SUBSYS_NFTABLES, 0)
	if err := unix.Sendto(s.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return os.NewSyscallError("sendto", err)
	}
	s.until = time.Now().Add(timeLimit)
	var failed error
	for left := len(messages); left > 0 && failed == nil; {
		b, err := s.receive()
		if err != nil {
			return err
		}
		eachMessage(b, func(kind uint16, body []byte) {
			if kind == unix.NLMSG_ERROR {
				left--
				if err := answerError(body); err != nil && failed == nil {
					failed = err
				}
			}
		})
	}
	return failed
}

// appendRequest writes a request (struct nlmsghdr, struct nfgenmsg).
func (s *socket) appendRequest(b []byte, m message, resource, flags uint16) []byte {
	s.sequence++
	b = binary.NativeEndian.AppendUint32(b, uint32(20+len(m.attrs)))
	b = binary.NativeEndian.AppendUint16(b, m.kind)
	b = binary.NativeEndian.AppendUint16(b, unix.NLM_F_REQUEST|flags|m.flags)
	b = binary.NativeEndian.AppendUint32(b, s.sequence)
	b = append(b, 0, 0, 0, 0, byte(m.family), unix.NFNETLINK_V0)
	b = binary.BigEndian.AppendUint16(b, resource)
	return append(b, m.attrs...)
}

// eachMessage hands out the messages of a datagram.
func eachMessage(b []byte, f func(kind uint16, body []byte)) {
	for len(b) >= unix.SizeofNlMsghdr {
		n := int(binary.NativeEndian.Uint32(b))
		if n < unix.SizeofNlMsghdr || n > len(b) {
			return
		}
		f(binary.NativeEndian.Uint16(b[4:]), b[unix.SizeofNlMsghdr:n])
		b = b[min((n+3)&^3, len(b)):]
	}
}
