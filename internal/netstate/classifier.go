package netstate

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/replypath/replypath/pkg/trace"
)

// Classifier is a BPF program or a tc filter that sees the packets of a device,
// whatever it makes of them.
type Classifier struct {
	Point    trace.AttachPoint
	Program  uint32 // id; 0: none
	Kind     string // of a tc filter
	Chain    uint32
	Priority uint16
	Protocol uint16 // ETH_P_*, in host order
	Direct   bool   // the program decides itself
	Options  []byte // TCA_OPTIONS
}

// Classifiers lists what sees the packets of a device at some points, in the
// order in which they meet it.
func (r *Reader) Classifiers(ctx context.Context, place trace.Place, index uint32, points ...trace.AttachPoint) ([]Classifier, error) {
	var found []Classifier
	err := r.Inside(ctx, place, func() error {
		rtnl, err := dialSocket(unix.NETLINK_ROUTE, true)
		if err != nil {
			return err
		}
		defer rtnl.Close()
		reading := newReading(trace.Question{}, nil)
		reading.attach(ctx, rtnl)
		var errs []error
		for _, p := range points {
			at, err := reading.classifiers(ctx, index, p)
			found, errs = append(found, at...), append(errs, err)
		}
		return errors.Join(errs...)
	})
	return found, err
}

func (r *reading) classifiers(ctx context.Context, index uint32, point trace.AttachPoint) ([]Classifier, error) {
	var programs []trace.Attachment
	switch point {
	case trace.XDPNative, trace.XDPGeneric:
		l, err := r.link(ctx, index)
		if err != nil {
			return nil, err
		}
		programs = slices.DeleteFunc(l.xdp.attachments(), func(a trace.Attachment) bool { return a.Point != point })
	case trace.TCXIngress, trace.TCXEgress:
		attach := ebpf.AttachTCXIngress
		if point == trace.TCXEgress {
			attach = ebpf.AttachTCXEgress
		}
		var err error
		if programs, err = tcx(index, point, attach); err != nil {
			return nil, err
		}
	default:
		return r.tcClassifiers(ctx, index, point)
	}
	var found []Classifier
	for _, p := range programs {
		found = append(found, Classifier{Point: point, Program: p.Program, Direct: true})
	}
	return found, nil
}

// tcClassifiers lists the filters of one side, in the order in which they run.
func (r *reading) tcClassifiers(ctx context.Context, index uint32, point trace.AttachPoint) ([]Classifier, error) {
	parent := uint32(classIngress)
	if point == trace.TCEgress {
		parent = classEgress
	}
	var found []Classifier
	err := r.rtnl.exchange(ctx, filterDump(index, parent), func(b []byte) bool {
		if c, ok := parseClassifier(b); ok {
			c.Point = point
			found = append(found, c)
		}
		return len(found) < maxAttachments
	})
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		err = nil // there is no such queue discipline
	}
	if err != nil {
		return found, fmt.Errorf("list filters at %s: %w", point, err)
	}
	slices.SortStableFunc(found, func(a, b Classifier) int { return cmp.Compare(a.Priority, b.Priority) })
	return found, nil
}

// parseClassifier reads a struct tcmsg with its attributes; false for what only
// announces filters: the dump names each kind and priority once without a handle.
func parseClassifier(b []byte) (Classifier, bool) {
	if len(b) < sizeofTCMessage {
		return Classifier{}, false
	}
	info := binary.NativeEndian.Uint32(b[16:])
	c := Classifier{Priority: uint16(info >> 16), Protocol: uint16(info)<<8 | uint16(info)>>8&0xff}
	for kind, value := range attributes(b[sizeofTCMessage:]) {
		switch kind {
		case tcKind:
			c.Kind = textOf(value)
		case tcOptions:
			c.Options = slices.Clone(value)
		case tcChain:
			c.Chain = uint32Of(value)
		}
	}
	if c.Kind == "bpf" {
		for kind, value := range attributes(c.Options) {
			switch kind {
			case bpfID:
				c.Program = uint32Of(value)
			case bpfFlags:
				c.Direct = uint32Of(value)&bpfDirectAction != 0
			}
		}
	}
	return c, len(c.Options) > 0
}

// Options returns the attributes of a filter's options, or of what is within them.
func Options(b []byte) map[uint16][]byte {
	found := make(map[uint16][]byte)
	for kind, value := range attributes(b) {
		found[kind] = value
	}
	return found
}

// Action is one action of a tc filter, as far as it decides.
type Action struct {
	Kind    string
	Verdict int32 // TC_ACT_*
	Known   bool  // Verdict is all that it does: gact without chance
}

// Actions reads what a filter does with what it matches, in order.
func (c *Classifier) Actions() []Action {
	var found []Action
	for kind, list := range attributes(c.Options) {
		switch kind {
		case policeAttribute[c.Kind]:
			found = append(found, Action{Kind: "police"})
		case actionAttribute[c.Kind]:
			for _, action := range attributes(list) {
				found = append(found, parseAction(action))
			}
		}
	}
	return found
}

// parseAction reads one action. Of gact (include/uapi/linux/tc_act/tc_gact.h)
// parameters are number 2, and number 3 is a probability.
func parseAction(b []byte) Action {
	const parameters, probability = 2, 3
	var a Action
	for kind, value := range attributes(b) {
		switch kind {
		case actionKind:
			a.Kind = textOf(value)
		case actionOptions:
			inside := Options(value)
			if p := inside[parameters]; len(p) >= 12 {
				a.Verdict, a.Known = int32(binary.NativeEndian.Uint32(p[8:])), inside[probability] == nil
			}
		}
	}
	a.Known = a.Known && a.Kind == "gact"
	return a
}
