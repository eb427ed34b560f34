package probe

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"github.com/replypath/replypath/pkg/trace"
)

// ErrUnsupported says that nothing can be traced here; the error that wraps it
// names what is missing.
var ErrUnsupported = errors.New("cannot trace here")

// State of a hook.
type State string

// The states of a hook.
const (
	Attached State = "attached"
	Refused  State = "refused" // the kernel has it, and did not let us
	Absent   State = "absent"  // the kernel does not have it
)

// HookStatus says whether a hook is attached, and why not.
type HookStatus struct {
	Name   string // "skb:kfree_skb"
	State  State
	Reason string
}

// Config of a Probe.
type Config struct {
	RingBytes int // size of the ring buffer, a power of two; 0: 8 MiB
}

// Probe is the set of attached programs. It goes with the process that opened it.
type Probe struct {
	links   []link.Link
	maps    map[string]*ebpf.Map // shared by all objects, by name
	reader  *ringbuf.Reader
	decoder *decoder
	status  []HookStatus
	counters
}

// Open loads and attaches all hooks that this kernel has. It fails, with an
// error that wraps ErrUnsupported, when the required ones cannot be attached.
func Open(cfg Config) (_ *Probe, err error) {
	kernel, err := btf.LoadKernelSpec()
	if err != nil {
		return nil, fmt.Errorf("%w: no BTF of this kernel (%w); it needs a kernel built with CONFIG_DEBUG_INFO_BTF, which shows /sys/kernel/btf/vmlinux", ErrUnsupported, err)
	}
	symbols, err := ReadSymbols()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	p := &Probe{maps: make(map[string]*ebpf.Map)}
	defer func() {
		if err != nil {
			p.Close()
		}
	}()
	drops := readReasons(kernel, "skb_drop_reason", "SKB_DROP_REASON_", "SKB_")
	resets := readReasons(kernel, "sk_rst_reason", "SK_RST_REASON_")
	p.decoder = newDecoder(drops, resets, symbols)
	l := loader{probe: p, cfg: cfg, kernel: kernel, drops: drops}
	for _, f := range families {
		if err := l.attachFamily(f); err != nil {
			return nil, err
		}
	}
	if err := l.checkRequired(); err != nil {
		return nil, err
	}
	if p.reader, err = ringbuf.NewReader(p.maps[dropMapEvents]); err != nil {
		return nil, fmt.Errorf("open ring buffer: %w", err)
	}
	return p, nil
}

// Close detaches all programs.
func (p *Probe) Close() error {
	var errs []error
	for _, l := range p.links {
		errs = append(errs, l.Close())
	}
	p.links = nil
	if p.reader != nil {
		errs = append(errs, p.reader.Close())
	}
	for _, m := range p.maps {
		errs = append(errs, m.Close())
	}
	return errors.Join(errs...)
}

// Status returns the hooks in the order of the attach table.
func (p *Probe) Status() []HookStatus { return slices.Clone(p.status) }

// loader is the state of one Open.
type loader struct {
	probe  *Probe
	cfg    Config
	kernel *btf.Spec
	drops  reasons
	failed map[trace.Hook]error
}

func (l *loader) attachFamily(f family) error {
	spec, err := f.load()
	if err != nil {
		return fmt.Errorf("read embedded eBPF object: %w", err)
	}
	if err := l.shareMaps(spec); err != nil {
		return err
	}
	for _, h := range f.hooks {
		status := HookStatus{Name: h.group + ":" + h.tracepoint, State: Attached}
		switch err := l.attach(spec, h); {
		case errors.Is(err, errNoTracepoint):
			status.State, status.Reason = Absent, err.Error()
			l.fail(h.kind, err)
		case err != nil:
			status.State, status.Reason = Refused, firstLine(err)
			l.fail(h.kind, err)
		}
		l.probe.status = append(l.probe.status, status)
	}
	return nil
}

func (l *loader) fail(kind trace.Hook, err error) {
	if l.failed == nil {
		l.failed = make(map[trace.Hook]error)
	}
	l.failed[kind] = err
}

// shareMaps creates the maps that all families share: once, and not those of constants.
func (l *loader) shareMaps(spec *ebpf.CollectionSpec) error {
	for _, name := range []string{dropMapEvents, dropMapLosses, dropMapLastPackets} {
		ms, ok := spec.Maps[name]
		if !ok || l.probe.maps[name] != nil {
			continue
		}
		if name == dropMapEvents && l.cfg.RingBytes != 0 {
			ms.MaxEntries = uint32(l.cfg.RingBytes)
		}
		m, err := ebpf.NewMap(ms)
		if err != nil {
			return fmt.Errorf("%w: create map %s: %s%s", ErrUnsupported, name, firstLine(err), missingPrivileges(err))
		}
		l.probe.maps[name] = m
	}
	return nil
}

// attach loads one program of an object by itself, so that one which a kernel
// refuses takes no other with it.
func (l *loader) attach(object *ebpf.CollectionSpec, h hook) error {
	args, err := tracepointArgs(l.kernel, h.tracepoint)
	if err != nil {
		return err
	}
	spec := object.Copy()
	for name := range spec.Programs {
		if name != h.program {
			delete(spec.Programs, name)
		}
	}
	if err := l.setConstants(spec, h, args); err != nil {
		return err
	}
	replacements := make(map[string]*ebpf.Map)
	for name, m := range l.probe.maps {
		if ms, ok := spec.Maps[name]; ok {
			ms.MaxEntries = m.MaxEntries()
			replacements[name] = m
		}
	}
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{
		MapReplacements: replacements,
		Programs:        ebpf.ProgramOptions{KernelTypes: l.kernel},
	})
	if err != nil {
		return err
	}
	defer coll.Close()
	lnk, err := link.AttachTracing(link.TracingOptions{Program: coll.Programs[h.program], AttachType: ebpf.AttachTraceRawTp})
	if err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	l.probe.links = append(l.probe.links, lnk)
	return nil
}

func (l *loader) setConstants(spec *ebpf.CollectionSpec, h hook, args int) error {
	set := func(name string, value any) error {
		v, ok := spec.Variables[name]
		if !ok {
			return nil
		}
		if err := v.Set(value); err != nil {
			return fmt.Errorf("set constant %s: %w", name, err)
		}
		return nil
	}
	hasReason := h.reasonArg != 0 && args > h.reasonArg
	if err := errors.Join(set(dropVarHasDropReason, hasReason), set(tcpVarHasResetReason, hasReason)); err != nil {
		return err
	}
	if v, ok := spec.Variables[dropVarIgnoredReasons]; ok {
		return set(dropVarIgnoredReasons, ignoredBits(l.drops, int(v.Size()/8)))
	}
	return nil
}

// checkRequired turns the failure of a required hook into one line that names what is missing.
func (l *loader) checkRequired() error {
	for kind := range required {
		if err := l.failed[kind]; err != nil {
			return fmt.Errorf("%w: hook %s: %s%s", ErrUnsupported, kind, firstLine(err), missingPrivileges(err))
		}
	}
	return nil
}

// firstLine puts an error of the library in one line. A refusal is called that:
// the library's own text guesses at RLIMIT_MEMLOCK.
func firstLine(err error) string {
	if errors.Is(err, unix.EPERM) {
		return unix.EPERM.Error()
	}
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line
}

// neededCapabilities are those without which loading fails (kernel 5.8 on).
var neededCapabilities = []struct {
	bit  uint
	name string
}{{unix.CAP_BPF, "CAP_BPF"}, {unix.CAP_PERFMON, "CAP_PERFMON"}}

// missingPrivileges says which capabilities this process lacks, when the error is a refusal.
func missingPrivileges(err error) string {
	if !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EACCES) {
		return ""
	}
	effective, readErr := effectiveCapabilities()
	if readErr != nil || effective&(1<<unix.CAP_SYS_ADMIN) != 0 {
		return ""
	}
	var missing []string
	for _, c := range neededCapabilities {
		if effective&(1<<c.bit) == 0 {
			missing = append(missing, c.name)
		}
	}
	if len(missing) == 0 {
		return ""
	}
	return fmt.Sprintf("; this process lacks %s: run it as root, or give it these capabilities", strings.Join(missing, " and "))
}

// HasCapability reports whether this process has a capability in its effective
// set; true when that cannot be read.
func HasCapability(bit int) bool {
	effective, err := effectiveCapabilities()
	return err != nil || effective&(1<<bit) != 0
}

// effectiveCapabilities reads CapEff of proc_pid_status(5).
func effectiveCapabilities() (uint64, error) {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if hex, ok := strings.CutPrefix(line, "CapEff:"); ok {
			var caps uint64
			_, err := fmt.Sscanf(strings.TrimSpace(hex), "%x", &caps)
			return caps, err
		}
	}
	return 0, errors.New("no CapEff in /proc/self/status")
}
