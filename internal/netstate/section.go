package netstate

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"

	"github.com/replypath/replypath/pkg/trace"
)

func (r *reading) readDevices(ctx context.Context, state *trace.HostState) error {
	var errIn, errOut error
	if r.in != 0 {
		state.In, errIn = r.device(ctx, r.in)
	}
	state.Out, errOut = r.device(ctx, r.q.Out)
	return errors.Join(errIn, errOut)
}

func (r *reading) readForwarding(ctx context.Context, state *trace.HostState) (err error) {
	state.Forwarding, state.ForwardingAll, err = r.forwarding(ctx, r.in)
	return err
}

func (r *reading) readOnward(ctx context.Context, state *trace.HostState) (err error) {
	state.SrcLocal = r.owns(ctx, r.q.Packet.Src.Addr())
	onward := flowOf(r.q.Packet, r.q.Mark, r.in)
	if r.in == 0 && onward.dst.IsLinkLocalUnicast() && onward.dst.Is6() {
		onward.oif = r.q.Out
	}
	state.Onward, err = r.resolve(ctx, onward)
	state.DstLocal = delivers(state.Onward.Type)
	return err
}

// readBack looks up the answer's route: made here when the packet is for this
// host, else coming in where the packet would have left.
func (r *reading) readBack(ctx context.Context, state *trace.HostState) (err error) {
	back := flowOf(r.q.Packet.Reverse(), 0, 0)
	switch {
	case state.DstLocal:
		back.mark = r.replyMark()
		back.oif = r.vrf.index
		if back.dst.IsLinkLocalUnicast() && back.dst.Is6() {
			back.oif = r.in // the address means nothing elsewhere
		}
	default:
		back.iif = state.Onward.Device.Index
		back.mark = r.reverseMark(state.In.Device.Name)
	}
	state.Back, err = r.resolve(ctx, back)
	return err
}

// replyMark is the mark that the kernel gives the answer to a packet for this
// host: none, unless tcp_fwmark_accept says that connections inherit it
// (inet_request_mark, include/net/inet_sock.h). A mark that a rule restores
// from conntrack comes after this first lookup.
func (r *reading) replyMark() uint32 {
	if r.q.Mark == 0 || r.q.Packet.Protocol != trace.TCP {
		return 0
	}
	if inherit, err := readSysctl("net/ipv4/tcp_fwmark_accept"); err != nil || inherit == 0 {
		return 0
	}
	return r.q.Mark
}

// reverseMark is the mark that the kernel uses to look up the way back to a
// packet's source (fib_validate_source): none, unless src_valid_mark is set.
func (r *reading) reverseMark(device string) uint32 {
	if r.q.Mark == 0 || r.family != unix.AF_INET {
		return 0
	}
	for _, name := range []string{"all", device} {
		if name == "" {
			continue
		}
		if valid, err := readSysctl("net/ipv4/conf/" + name + "/src_valid_mark"); err == nil && valid != 0 {
			return r.q.Mark
		}
	}
	return 0
}

// readNextHop looks at the neighbour that the question names, or the one that
// the packet's route needs.
func (r *reading) readNextHop(ctx context.Context, state *trace.HostState) (err error) {
	if r.q.NextHop.IsValid() {
		device := r.q.Out
		if device == 0 {
			device = r.in
		}
		state.NextHop, err = r.neighbor(ctx, r.q.NextHop, device)
		return err
	}
	onward := state.Onward
	if !onward.Found() || onward.Type != "unicast" || onward.Device.Index == 0 {
		return nil
	}
	hop := onward.Gateway
	if !hop.IsValid() {
		hop = r.q.Packet.Dst.Addr()
	}
	state.NextHop, err = r.neighbor(ctx, hop, onward.Device.Index)
	return err
}

func (r *reading) readPreviousHop(ctx context.Context, state *trace.HostState) (err error) {
	state.PreviousHop, err = r.previousHop(ctx, r.q.SourceMAC, r.in)
	return err
}

func (r *reading) readGateways(ctx context.Context, state *trace.HostState) (err error) {
	state.Gateways, err = r.gateways(ctx)
	return err
}

func (r *reading) readListeners(ctx context.Context, state *trace.HostState) (err error) {
	from := arrival{device: r.in, vrf: r.vrf.index}
	if from.vrf != 0 {
		across, err := readSysctl("net/ipv4/" + r.q.Packet.Protocol.String() + "_l3mdev_accept")
		from.acrossVRFs = err == nil && across != 0
	}
	state.Listeners, err = r.listeners(ctx, r.q.Packet.Protocol, r.q.Packet.Dst, from)
	return err
}

func (r *reading) readFilters(_ context.Context, state *trace.HostState) (err error) {
	state.Filters, err = r.filters(r.q, state.In, state.Out)
	return err
}
