package netstate

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	bpflink "github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/replypath/replypath/pkg/trace"
)

// Limits of what is listed.
const (
	maxAttachments = 32
	maxLinks       = 4096
)

// readAttachments lists what may drop packets at the device of the question.
func (r *reading) readAttachments(ctx context.Context, state *trace.HostState) error {
	l, err := r.link(ctx, r.q.Attached)
	if err != nil {
		return err
	}
	device := trace.Device{Index: l.index, Name: l.name}
	found := l.xdp.attachments()
	var errs []error
	for _, p := range []struct {
		point  trace.AttachPoint
		attach ebpf.AttachType
	}{{trace.TCXIngress, ebpf.AttachTCXIngress}, {trace.TCXEgress, ebpf.AttachTCXEgress}} {
		programs, err := tcx(l.index, p.point, p.attach)
		found = append(found, programs...)
		errs = append(errs, err)
	}
	for _, p := range []struct {
		point  trace.AttachPoint
		parent uint32
	}{{trace.TCIngress, classIngress}, {trace.TCEgress, classEgress}} {
		filters, err := r.tcFilters(ctx, l.index, p.point, p.parent)
		found = append(found, filters...)
		errs = append(errs, err)
	}
	for i := range found {
		found[i].Device = device
		describeProgram(&found[i])
	}
	findLinks(found)
	state.Attachments = found
	return errors.Join(errs...)
}

// Parents of tc filters (include/uapi/linux/pkt_sched.h): classes of clsact, and of the older ingress.
const (
	classIngress = 0xfffffff2
	classEgress  = 0xfffffff3
)

// tcx lists the programs at one of a device's BPF hooks (6.6).
func tcx(index uint32, point trace.AttachPoint, attach ebpf.AttachType) ([]trace.Attachment, error) {
	result, err := bpflink.QueryPrograms(bpflink.QueryOptions{Target: int(index), Attach: attach})
	if errors.Is(err, bpflink.ErrNotSupported) || errors.Is(err, unix.EINVAL) {
		return nil, nil // this kernel has none
	}
	if err != nil {
		return nil, fmt.Errorf("list %s programs: %w", point, err)
	}
	var found []trace.Attachment
	for _, p := range result.Programs {
		a := trace.Attachment{Point: point, Program: uint32(p.ID)}
		if id, ok := p.LinkID(); ok {
			a.Link = uint32(id)
		}
		found = append(found, a)
	}
	return found, nil
}

// tcFilters lists the filters of one parent that may drop.
func (r *reading) tcFilters(ctx context.Context, index uint32, point trace.AttachPoint, parent uint32) ([]trace.Attachment, error) {
	var found []trace.Attachment
	err := r.rtnl.exchange(ctx, filterDump(index, parent), func(b []byte) bool {
		if a, ok := parseFilter(b); ok {
			a.Point = point
			found = append(found, a)
		}
		return len(found) < maxAttachments
	})
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		err = nil // there is no such queue discipline
	}
	if err != nil {
		return found, fmt.Errorf("list filters at %s: %w", point, err)
	}
	return found, nil
}

// filterDump asks for the tc filters of a device below a parent.
func filterDump(index, parent uint32) *nl.NetlinkRequest {
	request := nl.NewNetlinkRequest(unix.RTM_GETTFILTER, unix.NLM_F_DUMP)
	header := make(rawMessage, sizeofTCMessage)
	binary.NativeEndian.PutUint32(header[4:], index)
	binary.NativeEndian.PutUint32(header[12:], parent)
	request.AddData(header)
	return request
}

// describeProgram asks the kernel for the name of a program.
func describeProgram(a *trace.Attachment) {
	if a.Program == 0 {
		return
	}
	program, err := ebpf.NewProgramFromID(ebpf.ProgramID(a.Program))
	if err != nil {
		return // it is gone, or not ours to see: its id has to do
	}
	defer program.Close()
	info, err := program.Info()
	if err != nil {
		return
	}
	// tc and netlink say the section that it was loaded from; the kernel's own name is the function's.
	if info.Name != "" {
		a.Name = info.Name
	}
	a.Tag = info.Tag
}

// findLinks finds the BPF links that hold XDP programs; rtnetlink does not tell them.
func findLinks(found []trace.Attachment) {
	wanted := false
	for i := range found {
		wanted = wanted || isXDP(found[i].Point)
	}
	if !wanted {
		return
	}
	var links bpflink.Iterator
	defer links.Close()
	for n := 0; n < maxLinks && links.Next(); n++ {
		info, err := links.Link.Info()
		if err != nil {
			continue
		}
		xdp := info.XDP()
		if xdp == nil {
			continue
		}
		for i := range found {
			if a := &found[i]; isXDP(a.Point) && a.Program == uint32(info.Program) && a.Device.Index == xdp.Ifindex {
				a.Link = uint32(info.ID)
			}
		}
	}
}

func isXDP(p trace.AttachPoint) bool { return p == trace.XDPNative || p == trace.XDPGeneric }
