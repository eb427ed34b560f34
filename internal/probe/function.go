package probe

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
)

// function is a kernel function whose verdict on a packet is followed. None is
// needed for an answer; each makes one more exact.
type function struct {
	name    string
	group   string // of what it decides
	module  string // that has it, where it is not part of the kernel itself
	program string // at fexit
	kind    verdictFunction
	// withoutReasons: of use only where the kernel gives no drop reasons.
	withoutReasons bool
}

// functions is the attach table of the plus tier.
var functions = []function{
	{name: "nf_hook_slow", group: "netfilter", program: verdictProgExitHookSlow, kind: verdictFunctionFUNCTION_HOOK_SLOW},
	{name: "nft_do_chain", group: "netfilter", module: "nf_tables", program: verdictProgExitNftChain, kind: verdictFunctionFUNCTION_NFT_CHAIN},
	{name: "ipt_do_table", group: "netfilter", module: "ip_tables", program: verdictProgExitIpTable, kind: verdictFunctionFUNCTION_IP_TABLE},
	{name: "ip6t_do_table", group: "netfilter", module: "ip6_tables", program: verdictProgExitIpTable, kind: verdictFunctionFUNCTION_IP_TABLE},
	{name: "nf_conntrack_in", group: "netfilter", module: "nf_conntrack", program: verdictProgExitConntrack, kind: verdictFunctionFUNCTION_CONNTRACK},
	{name: "ip_route_input_noref", group: "route", program: verdictProgExitRouteInput, kind: verdictFunctionFUNCTION_ROUTE_INPUT, withoutReasons: true},
	{name: upcallFunction, group: "openvswitch", module: "openvswitch", program: verdictProgExitUpcall, kind: verdictFunctionFUNCTION_UPCALL},
}

// attachedFunction is a function of the table and what became of it.
type attachedFunction struct {
	function
	counter uint32 // its index in the map "calls"
	status  HookStatus
	links   []link.Link
	pace    pace
	loaded  int // looks at its module, while it waits for it, at which it was loaded
}

func (f *attachedFunction) detach() error {
	var errs []error
	for _, l := range f.links {
		errs = append(errs, l.Close())
	}
	f.links = nil
	return errors.Join(errs...)
}

// attachFunctions attaches the functions that this kernel has and lets be followed.
func (l *loader) attachFunctions() error {
	object, err := l.object(loadVerdict)
	if err != nil {
		return err
	}
	for i, f := range functions {
		if f.withoutReasons && l.probe.reasons.drops != nil {
			continue
		}
		a := attachedFunction{function: f, counter: uint32(i)}
		if isLoaded(f.module) {
			a.loaded = settled // it is there now or never
		}
		l.attachFunction(object, &a)
		l.probe.functions = append(l.probe.functions, a)
	}
	return nil
}

// attachFunction attaches to a function's return: with fexit, or, where that is
// not to be had, with a pair of kprobes.
func (l *loader) attachFunction(object *ebpf.CollectionSpec, f *attachedFunction) {
	f.status = HookStatus{Name: f.group + ":" + f.name, State: Attached, Means: "fexit", Optional: true}
	var fexitErr error
	f.links, fexitErr = l.attachFexit(object, f)
	if fexitErr == nil {
		return
	}
	var kprobeErr error
	f.status.Means = "kprobe"
	if f.links, kprobeErr = l.attachKprobes(object, f); kprobeErr == nil {
		return
	}
	f.status.Means = ""
	if errors.Is(fexitErr, errNoTypes) && f.module != "" && !isLoaded(f.module) {
		// Whatever a kernel says that has no such function yet.
		f.status.State, f.status.Reason = Absent, fmt.Sprintf("module %s is not loaded; attached when it is", f.module)
		return
	}
	if errors.Is(fexitErr, errNoTypes) && (errors.Is(kprobeErr, errNoFunction) || errors.Is(kprobeErr, os.ErrNotExist)) {
		f.status.State, f.status.Reason = Absent, errNoFunction.Error()
		return
	}
	f.status.State = Refused
	f.status.Reason = fmt.Sprintf("fexit: %s; kprobe: %s", firstLine(fexitErr), firstLine(kprobeErr))
}

// errNoFunction says that the kernel has no such function, or none that could be followed this way.
var errNoFunction = errors.New("this kernel has no such function")

// errNoTypes says that a function cannot be followed with fexit, because the
// kernel does not tell its arguments' types.
var errNoTypes = errors.New("the kernel does not show the types of its arguments")

func (l *loader) attachFexit(object *ebpf.CollectionSpec, f *attachedFunction) ([]link.Link, error) {
	proto := l.kernel.function(f.name, f.module)
	if !l.kernel.typed || proto == nil {
		return nil, errNoTypes
	}
	coll, err := l.load(object, l.verdictConstants(f, proto), l.kernel.module(f.module), func(spec *ebpf.ProgramSpec) {
		spec.AttachTo = f.name
	}, f.program)
	if err != nil {
		return nil, err
	}
	defer coll.Close()
	lnk, err := link.AttachTracing(link.TracingOptions{Program: coll.Programs[f.program], AttachType: ebpf.AttachTraceFExit})
	if err != nil {
		return nil, err
	}
	return []link.Link{lnk}, nil
}

// kprobeUnit exists where the kernel has kprobes that go with the process that
// opened them. The older ones, in tracefs, would stay after a SIGKILL.
const kprobeUnit = "/sys/bus/event_source/devices/kprobe/type"

func (l *loader) attachKprobes(object *ebpf.CollectionSpec, f *attachedFunction) (links []link.Link, err error) {
	if _, err := os.Stat(kprobeUnit); err != nil {
		return nil, errors.New("this kernel has no kprobes")
	}
	enter, leave := verdictProgKprobeEnter, verdictProgKprobeLeave
	values := l.verdictConstants(f, l.kernel.function(f.name, f.module))
	coll, err := l.load(object, values, l.kernel.module(f.module), func(*ebpf.ProgramSpec) {}, enter, leave)
	if err != nil {
		return nil, l.explainLoad(f, err)
	}
	defer coll.Close()
	defer func() {
		if err != nil {
			for _, l := range links {
				l.Close()
			}
			links = nil
		}
	}()
	// First the end, so that no call is followed whose end would be missed.
	end, err := link.Kretprobe(f.name, coll.Programs[leave], nil)
	if err != nil {
		return nil, err
	}
	links = append(links, end)
	begin, err := link.Kprobe(f.name, coll.Programs[enter], nil)
	if err != nil {
		return links, err
	}
	return append(links, begin), nil
}

// explainLoad says why a program that reads a module's types cannot be loaded: most often there are none.
func (l *loader) explainLoad(f *attachedFunction, err error) error {
	if f.module == "" || l.kernel.module(f.module) != nil || l.kernel.function(f.name, f.module) != nil {
		return err
	}
	if !isLoaded(f.module) {
		return errNoFunction
	}
	return fmt.Errorf("the kernel does not show the types of module %s", f.module)
}

func (l *loader) verdictConstants(f *attachedFunction, proto *btf.FuncProto) constants {
	return constants{
		verdictVarProbedFunction: uint32(f.kind), verdictVarCallCounter: f.counter, verdictVarTableFirst: !takesPacketFirst(proto),
		dropVarTypedArguments: l.kernel.typed, dropVarNamesSymbols: false,
	}
}

// takesPacketFirst reports whether a function's first argument is the packet: of
// ipt_do_table it is before 5.15. Without a prototype it is taken to be.
func takesPacketFirst(proto *btf.FuncProto) bool {
	if proto == nil || len(proto.Params) == 0 {
		return true
	}
	ptr, ok := proto.Params[0].Type.(*btf.Pointer)
	if !ok {
		return false
	}
	s, ok := btf.UnderlyingType(ptr.Target).(*btf.Struct)
	return ok && s.Name == "sk_buff"
}

// isLoaded reports whether a module is loaded, or part of the kernel.
func isLoaded(module string) bool {
	_, err := os.Stat(filepath.Join("/sys/module", module))
	return err == nil
}
