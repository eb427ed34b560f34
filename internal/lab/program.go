package lab

import (
	"fmt"
	"math/bits"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// program is a BPF program of a lab: it drops TCP packets of one family by a port, and passes the rest.
type program struct {
	family Family
	port   uint16
	source bool // it is the source port that counts, not the destination port
}

// String says what it drops.
func (p program) String() string {
	side := "dport"
	if p.source {
		side = "sport"
	}
	return fmt.Sprintf("a program that drops tcp %s %d", side, p.port)
}

// layout is where a context (include/uapi/linux/bpf.h) holds the packet's ends, and what a program answers.
type layout struct {
	data, end  int16
	drop, pass int32
}

var (
	xdpLayout = layout{data: 0, end: 4, drop: 1, pass: 2}   // struct xdp_md; XDP_DROP, XDP_PASS
	tcLayout  = layout{data: 76, end: 80, drop: 2, pass: 0} // struct __sk_buff; TC_ACT_SHOT, TC_ACT_OK
)

// load loads the program. Frames are Ethernet without VLAN tags.
func (p program) load(kind ebpf.ProgramType, l layout) (*ebpf.Program, error) {
	const ethernet = 14
	etherType, protocol, transport := uint16(unix.ETH_P_IP), int16(ethernet+9), int16(ethernet+20)
	if p.family == IPv6 {
		etherType, protocol, transport = unix.ETH_P_IPV6, ethernet+6, ethernet+40
	}
	port := transport + 2
	if p.source {
		port = transport
	}
	spec := &ebpf.ProgramSpec{Name: "lab_dropper", Type: kind, License: "Apache-2.0", Instructions: asm.Instructions{
		asm.LoadMem(asm.R2, asm.R1, l.data, asm.Word),
		asm.LoadMem(asm.R3, asm.R1, l.end, asm.Word),
		asm.Mov.Reg(asm.R4, asm.R2),
		asm.Add.Imm(asm.R4, int32(transport)+4),
		asm.JGT.Reg(asm.R4, asm.R3, "pass"),
		asm.LoadMem(asm.R5, asm.R2, 12, asm.Half),
		asm.JNE.Imm(asm.R5, wire(etherType), "pass"),
		asm.LoadMem(asm.R5, asm.R2, protocol, asm.Byte),
		asm.JNE.Imm(asm.R5, unix.IPPROTO_TCP, "pass"),
		asm.LoadMem(asm.R5, asm.R2, port, asm.Half),
		asm.JNE.Imm(asm.R5, wire(p.port), "pass"),
		asm.Mov.Imm(asm.R0, l.drop),
		asm.Return(),
		asm.Mov.Imm(asm.R0, l.pass).WithSymbol("pass"),
		asm.Return(),
	}}
	loaded, err := ebpf.NewProgram(spec)
	return loaded, wrap("load "+p.String(), err)
}

// wire is a number of the packet as a little-endian machine reads it.
func wire(v uint16) int32 { return int32(bits.ReverseBytes16(v)) }

// attachXDP attaches a program to a device, in its driver or in the stack.
func attachXDP(name, device string, generic bool, p program) Change {
	mode, flags := "xdpdrv", unix.XDP_FLAGS_DRV_MODE
	if generic {
		mode, flags = "xdpgeneric", unix.XDP_FLAGS_SKB_MODE
	}
	return on(name, "ip link set dev "+device+" "+mode+": "+p.String(), func(h *host) error {
		loaded, err := p.load(ebpf.XDP, xdpLayout)
		if err != nil {
			return err
		}
		defer loaded.Close()
		l, err := h.link(device)
		if err != nil {
			return err
		}
		return enter(h.ns, func() error {
			return wrap("attach XDP program", netlink.LinkSetXdpFdWithFlags(l, loaded.FD(), flags))
		})
	})
}

// attachTC attaches a program to a device as a tc filter.
func attachTC(name, device string, egress bool, p program) Change {
	side, parent := "ingress", uint32(netlink.HANDLE_MIN_INGRESS)
	if egress {
		side, parent = "egress", netlink.HANDLE_MIN_EGRESS
	}
	return on(name, "tc filter add dev "+device+" "+side+" bpf direct-action: "+p.String(), func(h *host) error {
		loaded, err := p.load(ebpf.SchedCLS, tcLayout)
		if err != nil {
			return err
		}
		defer loaded.Close()
		l, err := h.link(device)
		if err != nil {
			return err
		}
		index := l.Attrs().Index
		clsact := &netlink.GenericQdisc{QdiscType: "clsact", QdiscAttrs: netlink.QdiscAttrs{
			LinkIndex: index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
		}}
		if err := h.nl.QdiscReplace(clsact); err != nil {
			return fmt.Errorf("add clsact: %w", err)
		}
		return wrap("attach tc program", h.nl.FilterAdd(&netlink.BpfFilter{
			FilterAttrs: netlink.FilterAttrs{LinkIndex: index, Parent: parent, Handle: 1, Priority: 1, Protocol: unix.ETH_P_ALL},
			Fd:          loaded.FD(), Name: "lab_dropper", DirectAction: true,
		}))
	})
}
