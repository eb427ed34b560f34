package netstate

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"os"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/replypath/replypath/pkg/trace"
)

// Open vSwitch's kernel datapath is asked by generic netlink
// (include/uapi/linux/openvswitch.h). Reading it needs no privilege, and no daemon.

// Limits of what is read of a datapath.
const (
	maxSwitchFlows = 32768 // flows that are looked at
	maxDropping    = 8     // flows that are kept
	maxPorts       = 4096
)

// Kinds of device of a datapath: its ports' master and the bridges' own ports.
const switchKind = "openvswitch"

// readSwitch asks the datapath that the question's device is a port of, if it is one.
func (r *reading) readSwitch(ctx context.Context, state *trace.HostState) error {
	l, err := r.link(ctx, r.q.Switched)
	if err != nil {
		return err
	}
	if l.kind != switchKind {
		master, err := r.link(ctx, l.master)
		if l.master == 0 || err != nil || master.kind != switchKind {
			return nil
		}
	}
	generic, err := dialSocket(unix.NETLINK_GENERIC, false)
	if err != nil {
		return err
	}
	defer generic.Close()
	d := datapathReader{socket: generic}
	state.Switch, err = d.read(ctx, trace.Device{Index: l.index, Name: l.name}, r.q.Packet)
	if err != nil {
		return fmt.Errorf("ask the datapath: %w", err)
	}
	return nil
}

// datapathReader reads what one port's datapath does with a packet.
type datapathReader struct{ *socket }

// port is a datapath's port (OVS_VPORT_ATTR_*).
type port struct {
	number  uint32
	name    string
	sockets []uint32 // netlink ports that packets without a flow are sent to
}

func (d datapathReader) read(ctx context.Context, device trace.Device, packet trace.Tuple) (trace.SwitchState, error) {
	s := trace.SwitchState{Port: device}
	datapaths, err := d.datapaths(ctx)
	if err != nil {
		return s, err
	}
	for _, dp := range datapaths {
		p, found, err := d.port(ctx, dp.index, device.Name)
		if err != nil {
			return s, err
		}
		if !found {
			continue
		}
		s.Known, s.Datapath, s.Number, s.Lost = true, dp.name, p.number, dp.lost
		if dp.perCPU {
			p.sockets = dp.sockets
		}
		if s.Deaf, err = isDeaf(p.sockets); err != nil {
			return s, err
		}
		return s, d.flows(ctx, dp.index, packet, &s)
	}
	return s, nil
}

// datapath is one of a namespace (OVS_DP_ATTR_*).
type datapath struct {
	index   uint32
	name    string
	lost    uint64
	perCPU  bool // it has one socket for each CPU, whatever the port
	sockets []uint32
}

// Generic netlink and Open vSwitch's own part of it.
const (
	sizeofGeneric  = 4 // struct genlmsghdr
	sizeofDatapath = 4 // struct ovs_header

	datapathCommandGet = 3 // OVS_DP_CMD_GET, OVS_VPORT_CMD_GET, OVS_FLOW_CMD_GET

	datapathName     = 1
	datapathStats    = 3
	datapathFeatures = 5
	datapathSockets  = 8
	featurePerCPU    = 1 << 2 // OVS_DP_F_DISPATCH_UPCALL_PER_CPU

	portNumber  = 1
	portName    = 3
	portSockets = 5
)

func (d datapathReader) datapaths(ctx context.Context) (found []datapath, err error) {
	err = d.dump(ctx, "ovs_datapath", 0, func(index uint32, attrs []byte) bool {
		dp := datapath{index: index}
		for kind, value := range attributes(attrs) {
			switch kind {
			case datapathName:
				dp.name = textOf(value)
			case datapathStats: // hits, misses, lost, flows
				if len(value) >= 24 {
					dp.lost = binary.NativeEndian.Uint64(value[16:])
				}
			case datapathFeatures:
				dp.perCPU = uint32Of(value)&featurePerCPU != 0
			case datapathSockets:
				dp.sockets = numbersOf(value)
			}
		}
		found = append(found, dp)
		return len(found) < maxPorts
	})
	return found, err
}

// port finds a port by the name of its device.
func (d datapathReader) port(ctx context.Context, datapath uint32, device string) (found port, ok bool, err error) {
	n := 0
	err = d.dump(ctx, "ovs_vport", datapath, func(_ uint32, attrs []byte) bool {
		var p port
		for kind, value := range attributes(attrs) {
			switch kind {
			case portNumber:
				p.number = uint32Of(value)
			case portName:
				p.name = textOf(value)
			case portSockets:
				p.sockets = numbersOf(value)
			}
		}
		if n++; p.name == device {
			found, ok = p, true
		}
		return !ok && n < maxPorts
	})
	return found, ok, err
}

// dump asks for all of a kind of object, one datapath's or (0) all of them.
func (d datapathReader) dump(ctx context.Context, family string, datapath uint32, each func(index uint32, attrs []byte) bool) error {
	id, version, err := d.family(ctx, family)
	if err != nil {
		return fmt.Errorf("find %s: %w", family, err)
	}
	request := nl.NewNetlinkRequest(int(id), unix.NLM_F_DUMP)
	header := make(rawMessage, sizeofGeneric+sizeofDatapath)
	header[0], header[1] = datapathCommandGet, version
	binary.NativeEndian.PutUint32(header[sizeofGeneric:], datapath)
	request.AddData(header)
	err = d.exchange(ctx, request, func(b []byte) bool {
		if len(b) < sizeofGeneric+sizeofDatapath {
			return true
		}
		return each(uint32Of(b[sizeofGeneric:]), b[sizeofGeneric+sizeofDatapath:])
	})
	if errors.Is(err, nl.ErrDumpInterrupted) {
		err = nil // flows come and go
	}
	if err != nil {
		return fmt.Errorf("list %s: %w", family, err)
	}
	return nil
}

// family asks for the number of a generic netlink family. It is there when a device of it is.
func (d datapathReader) family(ctx context.Context, name string) (id uint16, version uint8, err error) {
	request := nl.NewNetlinkRequest(unix.GENL_ID_CTRL, 0)
	request.AddData(rawMessage{unix.CTRL_CMD_GETFAMILY, 1, 0, 0})
	request.AddData(nl.NewRtAttr(unix.CTRL_ATTR_FAMILY_NAME, nl.ZeroTerminated(name)))
	err = d.exchange(ctx, request, func(b []byte) bool {
		if len(b) < sizeofGeneric {
			return true
		}
		for kind, value := range attributes(b[sizeofGeneric:]) {
			switch {
			case kind == unix.CTRL_ATTR_FAMILY_ID && len(value) >= 2:
				id = binary.NativeEndian.Uint16(value)
			case kind == unix.CTRL_ATTR_VERSION:
				version = uint8(uint32Of(value))
			}
		}
		return true
	})
	if err == nil && id == 0 {
		err = errTruncated
	}
	return id, version, err
}

func numbersOf(b []byte) []uint32 {
	numbers := make([]uint32, 0, len(b)/4)
	for ; len(b) >= 4; b = b[4:] {
		numbers = append(numbers, uint32Of(b))
	}
	return numbers
}

// isDeaf reports whether nobody has any of the netlink ports open, in the namespace that the thread is in.
func isDeaf(sockets []uint32) (bool, error) {
	file, err := os.Open("/proc/thread-self/net/netlink")
	if err != nil {
		return false, err
	}
	defer file.Close()
	open, err := genericSockets(file)
	if err != nil {
		return false, err
	}
	for _, s := range sockets {
		if s != 0 && open[s] {
			return false, nil
		}
	}
	return true, nil
}

// genericSockets reads the ports of generic netlink's sockets: "sk Eth Pid Groups …", Eth being the protocol.
func genericSockets(r io.Reader) (map[uint32]bool, error) {
	open := make(map[uint32]bool)
	scan := bufio.NewScanner(r)
	for scan.Scan() {
		fields := strings.Fields(scan.Text())
		if len(fields) < 3 || fields[1] != strconv.Itoa(unix.NETLINK_GENERIC) {
			continue
		}
		if id, err := strconv.ParseUint(fields[2], 10, 32); err == nil {
			open[uint32(id)] = true
		}
	}
	return open, scan.Err()
}

// Parts of a flow (OVS_FLOW_ATTR_*) and of its actions.
const (
	flowKey     = 1
	flowActions = 2
	flowStats   = 3
	flowMask    = 7

	actionDrop = 24 // OVS_ACTION_ATTR_DROP (6.6)
)

// flows looks for the flows that fit the packet.
func (d datapathReader) flows(ctx context.Context, datapath uint32, packet trace.Tuple, s *trace.SwitchState) error {
	n := 0
	err := d.dump(ctx, "ovs_flow", datapath, func(_ uint32, attrs []byte) bool {
		n++
		addFlow(attrs, packet, s)
		return n < maxSwitchFlows && len(s.Dropping) < maxDropping
	})
	if err == nil && n >= maxSwitchFlows {
		err = fmt.Errorf("more than %d flows", maxSwitchFlows)
	}
	return err
}

// addFlow notes a flow that fits the packet.
func addFlow(attrs []byte, packet trace.Tuple, s *trace.SwitchState) {
	var key, mask, actions, stats []byte
	masked := false
	for kind, value := range attributes(attrs) {
		switch kind {
		case flowKey:
			key = value
		case flowMask:
			mask, masked = value, true
		case flowActions:
			actions = value
		case flowStats:
			stats = value
		}
	}
	if !masked {
		mask = nil
	}
	match := matchFlow(key, mask, masked, packet, s.Number)
	switch {
	case !match.fits:
	case !dropsAll(actions):
		s.Passing++
	default:
		f := trace.SwitchFlow{Match: strings.Join(match.text, ","), Certain: match.certain}
		if len(stats) >= 8 {
			f.Packets = binary.NativeEndian.Uint64(stats)
		}
		s.Dropping = append(s.Dropping, f)
	}
}

// dropsAll reports whether a flow's actions send the packet nowhere: there are none, or the first is to drop.
func dropsAll(actions []byte) bool {
	for kind := range attributes(actions) {
		return kind == actionDrop
	}
	return true
}

// Fields of a flow (OVS_KEY_ATTR_*).
const (
	fieldPriority      = 2
	fieldInPort        = 3
	fieldEthernet      = 4
	fieldVLAN          = 5
	fieldEthertype     = 6
	fieldIPv4          = 7
	fieldIPv6          = 8
	fieldTCP           = 9
	fieldUDP           = 10
	fieldRecirculation = 20
	fieldPacketType    = 29
)

// otherFields are those that flows look at, too, and whose value for the packet is not known.
var otherFields = map[uint16]string{
	15: "skb_mark", 16: "tunnel", 18: "tcp_flags", 19: "dp_hash", 22: "ct_state", 23: "ct_zone", 24: "ct_mark", 25: "ct_label",
	26: "ct_tuple4", 27: "ct_tuple6",
}

// flowMatch is what comes of comparing a flow with a packet.
type flowMatch struct {
	fits, certain bool
	text          []string
}

// matchFlow compares a flow's fields with what is known of a packet: port,
// addresses, protocol, ports. What else the flow looks at makes it uncertain.
func matchFlow(key, mask []byte, masked bool, packet trace.Tuple, number uint32) flowMatch {
	m := flowMatch{fits: true, certain: true}
	masks := make(map[uint16][]byte)
	for kind, value := range attributes(mask) {
		masks[kind] = value
	}
	for kind, value := range attributes(key) {
		bits, asked := masks[kind]
		if !masked {
			bits, asked = exactly(len(value)), true
		}
		if kind == fieldEthertype && masked && !asked {
			bits, asked = exactly(len(value)), true // what follows it is understood by it
		}
		if asked && len(bits) >= len(value) && !isZero(bits[:len(value)]) {
			m.field(kind, value, bits, packet, number)
		}
	}
	return m
}

func exactly(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = 0xff
	}
	return b
}

func isZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// field compares one field. value and mask are equally long.
func (m *flowMatch) field(kind uint16, value, mask []byte, packet trace.Tuple, number uint32) {
	switch kind {
	case fieldInPort:
		m.number("in_port", uint64(uint32Of(value)), uint64(number), uint64(uint32Of(mask)))
	case fieldEthertype:
		m.text = append(m.text, fmt.Sprintf("eth_type(0x%04x)", bigUint(value)))
		m.fits = m.fits && bigUint(value) == etherType(packet)
	case fieldIPv4:
		m.ip("ipv4", value, mask, packet, 4, 8)
	case fieldIPv6:
		m.ip("ipv6", value, mask, packet, 16, 36)
	case fieldTCP:
		m.ports("tcp", value, mask, packet, trace.TCP)
	case fieldUDP:
		m.ports("udp", value, mask, packet, trace.UDP)
	case fieldRecirculation:
		if id := uint32Of(value); id != 0 {
			m.text, m.certain = append(m.text, fmt.Sprintf("recirc_id(%#x)", id)), false
		}
	case fieldPriority, fieldPacketType, fieldVLAN:
		m.certain = m.certain && isZero(value)
	case fieldEthernet:
		if len(value) >= 12 {
			m.text = append(m.text, showEthernet(value, mask))
		}
	default:
		m.certain = false
		if name := otherFields[kind]; name != "" {
			m.text = append(m.text, name+"(...)")
		}
	}
}

// number compares a number that the flow looks at.
func (m *flowMatch) number(name string, want, have, mask uint64) {
	m.text = append(m.text, fmt.Sprintf("%s(%d)", name, want))
	m.fits = m.fits && want&mask == have&mask
}

// ip compares struct ovs_key_ipv4 or ovs_key_ipv6: source, destination, and the protocol further on.
func (m *flowMatch) ip(name string, value, mask []byte, packet trace.Tuple, size, protocol int) {
	if len(value) <= protocol {
		m.certain = false
		return
	}
	var parts []string
	for i, a := range []struct {
		name string
		have []byte
	}{{"src", packet.Src.Addr().AsSlice()}, {"dst", packet.Dst.Addr().AsSlice()}} {
		want, bits := value[i*size:(i+1)*size], mask[i*size:(i+1)*size]
		if isZero(bits) {
			continue
		}
		parts = append(parts, fmt.Sprintf("%s=%s%s", a.name, addressOf(want), showMask(bits)))
		m.fits = m.fits && sameBits(want, a.have, bits)
	}
	if mask[protocol] != 0 {
		parts = append(parts, fmt.Sprintf("proto=%d", value[protocol]))
		m.fits = m.fits && value[protocol] == uint8(packet.Protocol)
	}
	if len(parts) > 0 {
		m.text = append(m.text, name+"("+strings.Join(parts, ",")+")")
	}
}

// ports compares struct ovs_key_tcp or ovs_key_udp.
func (m *flowMatch) ports(name string, value, mask []byte, packet trace.Tuple, protocol trace.Protocol) {
	if len(value) < 4 {
		m.certain = false
		return
	}
	m.fits = m.fits && packet.Protocol == protocol
	var parts []string
	for i, p := range []struct {
		name string
		have uint16
	}{{"src", packet.Src.Port()}, {"dst", packet.Dst.Port()}} {
		want, bits := binary.BigEndian.Uint16(value[2*i:]), binary.BigEndian.Uint16(mask[2*i:])
		if bits == 0 {
			continue
		}
		text := fmt.Sprintf("%s=%d", p.name, want)
		if bits != 0xffff {
			text += fmt.Sprintf("/%#x", bits)
		}
		parts = append(parts, text)
		m.fits = m.fits && want&bits == p.have&bits
	}
	m.text = append(m.text, name+"("+strings.Join(parts, ",")+")")
}

func sameBits(a, b, mask []byte) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i]&mask[i] != b[i]&mask[i] {
			return false
		}
	}
	return true
}

// showMask writes an address's mask: nothing for all bits, a length where it is a prefix's.
func showMask(mask []byte) string {
	ones, ended, plain := 0, false, true
	for _, b := range mask {
		n := bits.LeadingZeros8(^b)
		plain = plain && !(ended && b != 0) && b == ^byte(0xff>>n)
		ended = ended || n < 8
		ones += n
	}
	switch {
	case plain && ones == 8*len(mask):
		return ""
	case plain:
		return fmt.Sprintf("/%d", ones)
	}
	return "/" + addressOf(mask).String()
}

// showEthernet writes struct ovs_key_ethernet. The packet's MAC addresses are not known.
func showEthernet(value, mask []byte) string {
	var parts []string
	for i, name := range []string{"src", "dst"} {
		if !isZero(mask[6*i : 6*i+6]) {
			parts = append(parts, fmt.Sprintf("%s=% x", name, value[6*i:6*i+6]))
		}
	}
	return strings.ReplaceAll("eth("+strings.Join(parts, ",")+")", " ", ":")
}

func bigUint(b []byte) uint16 {
	if len(b) < 2 {
		return 0
	}
	return binary.BigEndian.Uint16(b)
}

func etherType(packet trace.Tuple) uint16 {
	if packet.Is6() {
		return unix.ETH_P_IPV6
	}
	return unix.ETH_P_IP
}
