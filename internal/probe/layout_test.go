package probe

import (
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"

	"github.com/replypath/replypath/pkg/trace"
)

// The committed object and the Go types must lay out a record in the same way,
// without holes that either side fills by itself.
func TestLayoutOfTheABI(t *testing.T) {
	spec, err := loadDrop()
	if err != nil {
		t.Fatal(err)
	}
	for name, goType := range map[string]reflect.Type{
		"event":           reflect.TypeFor[dropEvent](),
		"event_conntrack": reflect.TypeFor[dropEventConntrack](),
		"event_verdict":   reflect.TypeFor[dropEventVerdict](),
		"event_tunnel":    reflect.TypeFor[dropEventTunnel](),
		"event_dns":       reflect.TypeFor[dropEventDns](),
		"event_dns_long":  reflect.TypeFor[dropEventDnsLong](),
		"event_hop":       reflect.TypeFor[dropEventHop](),
		"tunnel":          reflect.TypeFor[dropTunnel](),
		"conntrack":       reflect.TypeFor[dropConntrack](),
		"tuple":           reflect.TypeFor[dropTuple](),
	} {
		var c *btf.Struct
		if err := spec.Types.TypeByName(name, &c); err != nil {
			t.Fatal(err)
		}
		if int(c.Size) != int(goType.Size()) {
			t.Errorf("struct %s: %d bytes in C, %d in Go", name, c.Size, goType.Size())
		}
		end := uint32(0)
		for _, m := range c.Members {
			if off := m.Offset.Bytes(); off != end {
				t.Errorf("struct %s: a hole of %d bytes before %s", name, off-end, m.Name)
			}
			size, err := btf.Sizeof(m.Type)
			if err != nil {
				t.Fatal(err)
			}
			end = m.Offset.Bytes() + uint32(size)
			field, ok := fieldNamed(goType, m.Name)
			if !ok {
				t.Errorf("struct %s: no field for %s", name, m.Name)
				continue
			}
			if uint32(field.Offset) != m.Offset.Bytes() || int(field.Type.Size()) != size {
				t.Errorf("struct %s, %s: %d bytes at %d in C, %d at %d in Go", name, m.Name, size, m.Offset.Bytes(), field.Type.Size(), field.Offset)
			}
		}
		if end != c.Size {
			t.Errorf("struct %s: %d bytes of padding at its end", name, c.Size-end)
		}
	}
}

func fieldNamed(t reflect.Type, c string) (reflect.StructField, bool) {
	return t.FieldByNameFunc(func(name string) bool { return strings.EqualFold(name, strings.ReplaceAll(c, "_", "")) })
}

// The hooks of the ABI are those of the vocabulary.
func TestHooksOfTheABI(t *testing.T) {
	for abi, hook := range map[dropHook]trace.Hook{
		dropHookHOOK_DROP: trace.HookDrop, dropHookHOOK_RECEIVE: trace.HookReceive, dropHookHOOK_TRANSMIT: trace.HookTransmit,
		dropHookHOOK_ROUTE_MISS4: trace.HookRouteMiss4, dropHookHOOK_ROUTE_MISS6: trace.HookRouteMiss6,
		dropHookHOOK_SOCKET_STATE: trace.HookSocketState, dropHookHOOK_RETRANSMIT: trace.HookRetransmit,
		dropHookHOOK_RETRANSMIT_SYNACK: trace.HookRetransmitSYNACK, dropHookHOOK_RESET_SENT: trace.HookResetSent,
		dropHookHOOK_RESET_RECEIVED: trace.HookResetReceived, dropHookHOOK_NEIGHBOR_FAILED: trace.HookNeighborFailed,
		dropHookHOOK_ICMP_SENT: trace.HookICMPSent, dropHookHOOK_VERDICT: trace.HookVerdict, dropHookHOOK_ASTRAY: trace.HookAstray,
	} {
		if int(abi) != int(hook) {
			t.Errorf("hook %s is %d in C and %d in Go", hook, abi, hook)
		}
	}
	if len(LossCauses) != int(dropLossLOSS_MAX) {
		t.Errorf("%d causes of loss are named, the ABI has %d", len(LossCauses), dropLossLOSS_MAX)
	}
}

// Every program of the objects is in the attach table, and the other way round.
func TestAttachTable(t *testing.T) {
	for _, f := range families {
		spec, err := f.load()
		if err != nil {
			t.Fatal(err)
		}
		left := make(map[string]*ebpf.ProgramSpec)
		for name, p := range spec.Programs {
			left[name] = p
		}
		for _, h := range f.hooks {
			p := left[h.program]
			if p == nil {
				t.Errorf("no program %s", h.program)
				continue
			}
			if p.AttachTo != h.tracepoint {
				t.Errorf("program %s is for %s, the table says %s", h.program, p.AttachTo, h.tracepoint)
			}
			if p.License != "Dual BSD/GPL" {
				t.Errorf("program %s has licence %q", h.program, p.License)
			}
			delete(left, h.program)
		}
		for name := range left {
			t.Errorf("program %s is not in the attach table", name)
		}
	}
}

// The objects of the plus tier, for each architecture that has one: the file says for which.
func TestFunctionTable(t *testing.T) {
	objects, err := filepath.Glob("verdict_*_bpfel.o")
	if err != nil || len(objects) != 2 {
		t.Fatalf("objects: %v, %v; want one for x86 and one for arm64", objects, err)
	}
	for _, object := range objects {
		spec, err := ebpf.LoadCollectionSpec(object)
		if err != nil {
			t.Fatal(err)
		}
		used := map[string]bool{verdictProgKprobeEnter: true, verdictProgKprobeLeave: true}
		for _, f := range functions {
			if p := spec.Programs[f.program]; p == nil || p.AttachType != ebpf.AttachTraceFExit {
				t.Errorf("%s: function %s has no fexit program %s", object, f.name, f.program)
			}
			used[f.program] = true
		}
		for name := range spec.Programs {
			if !used[name] {
				t.Errorf("%s: program %s is not in the table", object, name)
			}
		}
		counters := spec.Maps[verdictMapCalls]
		if counters == nil || int(counters.MaxEntries) < len(functions) {
			t.Errorf("%s: fewer call counters than functions", object)
		}
	}
}
