package probe

import (
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/ringbuf"

	"github.com/replypath/replypath/pkg/trace"
)

// ErrUnsupported says that nothing can be traced here; the error that wraps it
// names what is missing.
var ErrUnsupported = errors.New("cannot trace here")

// Tier says which kinds of hooks are used.
type Tier string

// The tiers.
const (
	TierBase Tier = "base" // tracepoints
	TierPlus Tier = "plus" // and kernel functions, by fexit or kprobes
	TierAuto Tier = "auto" // what this kernel allows
)

// ParseTier reads what a user asks for: auto or base.
func ParseTier(s string) (Tier, error) {
	switch t := Tier(s); t {
	case TierAuto, TierBase:
		return t, nil
	}
	return "", fmt.Errorf("tier %q: want auto or base", s)
}

// State of a hook.
type State string

// The states of a hook.
const (
	Attached State = "attached"
	Refused  State = "refused" // the kernel has it, and did not let us
	Absent   State = "absent"  // the kernel does not have it, or not now
	Paused   State = "paused"  // it was called so often that following it would cost too much
)

// HookStatus says whether a hook is attached, and why not.
type HookStatus struct {
	Name   string // "skb:kfree_skb"
	State  State
	Means  string // how it is attached: "tp_btf", "raw_tp", "fexit" or "kprobe"
	Reason string
	// Optional hooks make answers more exact, and none is needed for one.
	Optional bool
}

// Config of a Probe.
type Config struct {
	RingBytes int    // size of the ring buffer, a power of two; 0: 8 MiB
	BTF       string // file with the kernel's types; "": the kernel's own
	Tier      Tier   // "": TierAuto
	// NamespaceEvents is how many events of DNS and drops a second each namespace may give on each CPU; 0: 50,000.
	NamespaceEvents int
	DNSPorts        []uint16 // that DNS is spoken on, beside 53 and those that 53 is redirected to
}

// Probe is the set of attached programs. It goes with the process that opened it.
type Probe struct {
	cfg     Config
	reasons reasonEnums
	maps    map[string]*ebpf.Map // shared by all objects, by name
	reader  *ringbuf.Reader
	decoder *decoder
	counters
	limits limits

	tracepoints []HookStatus
	links       []link.Link // of tracepoints

	mu        sync.Mutex // of the functions: they come and go with modules and load
	functions []attachedFunction
}

// Open loads and attaches all hooks that this kernel has. It fails, with an
// error that wraps ErrUnsupported, when the required ones cannot be attached.
func Open(cfg Config) (*Probe, error) {
	k, err := readKernel(cfg.BTF)
	if err != nil {
		return nil, err
	}
	return open(cfg, k)
}

func open(cfg Config, k *kernel) (_ *Probe, err error) {
	p := &Probe{cfg: cfg, maps: make(map[string]*ebpf.Map), reasons: readReasonEnums(k.types)}
	defer func() {
		if err != nil {
			p.Close()
		}
	}()
	l := newLoader(p, k)
	if err := l.attachTracepoints(); err != nil {
		return nil, err
	}
	if err := p.dnsPorts(cfg.DNSPorts); err != nil {
		return nil, err
	}
	if cfg.Tier != TierBase {
		if err := l.attachFunctions(); err != nil {
			return nil, err
		}
	}
	symbols := newSymbols(p.maps[dropMapSymbols])
	if p.reasons.drops == nil && !l.namesSymbols && !symbols.readTable() {
		p.tracepoints[0].Reason = hiddenSymbols
	}
	p.decoder = newDecoder(p.reasons, symbols)
	if p.reader, err = ringbuf.NewReader(p.maps[dropMapEvents]); err != nil {
		return nil, fmt.Errorf("open ring buffer: %w", err)
	}
	return p, nil
}

// hiddenSymbols is why drops cannot be told apart though their hook is attached.
const hiddenSymbols = "this kernel gives no drop reasons and hides where it drops: drops will be missed; " +
	"let its symbols be read (sysctl kernel.kptr_restrict=1, and CAP_SYSLOG) and start again"

// Close detaches all programs.
func (p *Probe) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var errs []error
	for i := range p.functions {
		errs = append(errs, p.functions[i].detach())
	}
	p.functions = nil
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

// Status returns the hooks in the order of the attach tables.
func (p *Probe) Status() []HookStatus {
	all := slices.Clone(p.tracepoints)
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range p.functions {
		all = append(all, p.functions[i].status)
	}
	return all
}

// Tier returns TierPlus where the kernel lets its functions be followed, else TierBase.
func (p *Probe) Tier() Tier {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range p.functions {
		if s := p.functions[i].status.State; s == Attached || s == Paused {
			return TierPlus
		}
	}
	return TierBase
}

// required are the hooks without which nothing can be explained.
var required = map[trace.Hook]bool{trace.HookReceive: true, trace.HookTransmit: true, trace.HookDrop: true}
