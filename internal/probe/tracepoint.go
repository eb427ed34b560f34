package probe

import (
	"errors"
	"fmt"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// attachTracepoints attaches all hooks of the base tier that the kernel has.
func (l *loader) attachTracepoints() error {
	var missing error // the first of the required hooks that fails
	for _, f := range families {
		object, err := l.object(f.load)
		if err != nil {
			return err
		}
		for _, h := range f.hooks {
			status := HookStatus{Name: h.group + ":" + h.tracepoint, State: Attached, Means: l.tracepointMeans()}
			if err := l.attachTracepoint(object, h); err != nil {
				status.State, status.Reason, status.Means = Refused, firstLine(err), ""
				if errors.Is(err, errNoTracepoint) {
					status.State = Absent
				}
				if required[h.kind] && missing == nil {
					missing = fmt.Errorf("%w: hook %s: %s%s", ErrUnsupported, status.Name, firstLine(err), advice(err))
				}
			}
			l.probe.tracepoints = append(l.probe.tracepoints, status)
		}
	}
	l.probe.tracepoints = append(l.probe.tracepoints, l.pagesStatus())
	return missing
}

// tracepointMeans is how programs are attached: a kernel that knows its own types
// checks what a program reads of a tracepoint's arguments.
func (l *loader) tracepointMeans() string {
	if l.kernel.typed {
		return "tp_btf"
	}
	return "raw_tp"
}

func (l *loader) attachTracepoint(object *ebpf.CollectionSpec, h hook) error {
	args, err := tracepointArgs(l.kernel.types, h.tracepoint)
	if err != nil {
		return err
	}
	hasReason := h.reasonArg != 0 && args > h.reasonArg
	values := constants{
		dropVarHasDropReason: hasReason, tcpVarHasResetReason: hasReason,
		dropVarTypedArguments: l.kernel.typed, dropVarNamesSymbols: l.namesSymbols,
		dropVarBudgetInterval: uint64(time.Second) / uint64(l.probe.cfg.namespaceEvents()),
	}
	if v, ok := object.Variables[dropVarIgnoredReasons]; ok {
		values[dropVarIgnoredReasons] = ignoredBits(l.probe.reasons.drops, int(v.Size()/8))
	}
	coll, err := l.loadReading(object, values, func(spec *ebpf.ProgramSpec) {
		if !l.kernel.typed {
			spec.Type, spec.AttachType, spec.AttachTo = ebpf.RawTracepoint, ebpf.AttachNone, ""
		}
	}, h.program)
	if err != nil {
		return err
	}
	defer coll.Close()
	lnk, err := l.linkTracepoint(coll.Programs[h.program], h.tracepoint)
	if err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	l.probe.links = append(l.probe.links, lnk)
	return nil
}

func (l *loader) linkTracepoint(program *ebpf.Program, name string) (link.Link, error) {
	if l.kernel.typed {
		return link.AttachTracing(link.TracingOptions{Program: program, AttachType: ebpf.AttachTraceRawTp})
	}
	return link.AttachRawTracepoint(link.RawTracepointOptions{Name: name, Program: program})
}
