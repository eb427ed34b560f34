package classifier

import (
	"encoding/binary"
	"errors"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"github.com/replypath/replypath/internal/netstate"
	"github.com/replypath/replypath/pkg/trace"
)

// run runs a program on the packet. ran: it is one that keeps state, or may. Not
// ok: it was not run, or could not be.
func run(c *netstate.Classifier, p *Packet, index uint32, runAll bool) (code int32, ran, ok bool) {
	program, err := ebpf.NewProgramFromID(ebpf.ProgramID(c.Program))
	if err != nil {
		return 0, false, false
	}
	defer program.Close()
	pure := isPure(program)
	if !pure && !runAll {
		return 0, false, false
	}
	frame := p.frame()
	options := &ebpf.RunOptions{Data: frame, Context: contextOf(c, p, index, len(frame))}
	result, err := program.Run(options)
	if errors.Is(err, unix.EINVAL) {
		options.Context = nil // older kernels take none
		result, err = program.Run(options)
	}
	return int32(result), !pure, err == nil
}

// isPure reports whether a program does nothing but look at the packet: it calls
// nobody, and whatever maps it has cannot be written by programs.
func isPure(program *ebpf.Program) bool {
	info, err := program.Info()
	if err != nil {
		return false
	}
	maps, known := info.MapIDs()
	if !known {
		return false
	}
	for _, id := range maps {
		if !isReadOnly(id) {
			return false
		}
	}
	instructions, err := info.Instructions()
	if err != nil || len(instructions) == 0 {
		return false
	}
	for i := range instructions {
		op := instructions[i].OpCode
		if op.Class().IsJump() && op.JumpOp() == asm.Call {
			return false
		}
	}
	return true
}

func isReadOnly(id ebpf.MapID) bool {
	m, err := ebpf.NewMapFromID(id)
	if err != nil {
		return false
	}
	defer m.Close()
	return m.Flags()&unix.BPF_F_RDONLY_PROG != 0
}

// contextOf is the context that a program sees the packet by (struct xdp_md,
// struct __sk_buff), as far as it may be given.
func contextOf(c *netstate.Classifier, p *Packet, index uint32, length int) []byte {
	if c.Point == trace.XDPNative || c.Point == trace.XDPGeneric {
		const size, end, ingress = 24, 4, 12
		b := make([]byte, size)
		binary.NativeEndian.PutUint32(b[end:], uint32(length))
		binary.NativeEndian.PutUint32(b[ingress:], index)
		return b
	}
	const size, mark, ingress, device = 192, 8, 36, 40
	b := make([]byte, size)
	binary.NativeEndian.PutUint32(b[mark:], p.Mark)
	binary.NativeEndian.PutUint32(b[device:], index)
	if c.Point == trace.TCIngress || c.Point == trace.TCXIngress {
		binary.NativeEndian.PutUint32(b[ingress:], index)
	}
	return b
}
