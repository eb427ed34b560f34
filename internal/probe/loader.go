package probe

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/features"
)

// loader loads programs into the kernel, for one Open or one later attempt.
type loader struct {
	probe  *Probe
	kernel *kernel
	// namesSymbols: the kernel has bpf_snprintf, which knows the names of its functions.
	namesSymbols bool
	// readsPages: programs at tracepoints can read what an skb holds in pages.
	readsPages bool
}

func newLoader(p *Probe, k *kernel) *loader {
	// The tracing programs' helpers are those of raw tracepoints, and more.
	return &loader{probe: p, kernel: k, namesSymbols: features.HaveProgramHelper(ebpf.RawTracepoint, asm.FnSnprintf) == nil}
}

// sharedMaps are the maps that all objects use together; each object has its own constants.
var sharedMaps = []string{
	dropMapEvents, dropMapLosses, dropMapLastPackets, dropMapUdpPeers, dropMapUdpSenders, dropMapUdpFlows, dropMapUdpRates, dropMapSymbols, dropMapRefusedPackets,
	packetMapDnsPorts, packetMapTold, packetMapDatagrams, packetMapUntoldQueries, packetMapBudgets,
	verdictMapCalls, verdictMapUnderWay,
}

// shareMaps creates the shared maps that an object brings along, those that are not there yet.
func (l *loader) shareMaps(object *ebpf.CollectionSpec) error {
	for _, name := range sharedMaps {
		spec, ok := object.Maps[name]
		if !ok || l.probe.maps[name] != nil {
			continue
		}
		if name == dropMapEvents && l.probe.cfg.RingBytes != 0 {
			spec.MaxEntries = uint32(l.probe.cfg.RingBytes)
		}
		err := withMemlock(func() (err error) {
			l.probe.maps[name], err = ebpf.NewMap(spec)
			return err
		})
		if err != nil {
			delete(l.probe.maps, name)
			return fmt.Errorf("%w: create map %s: %s%s", ErrUnsupported, name, firstLine(err), advice(err))
		}
	}
	return nil
}

// constants are the values of a program's `const volatile` variables. Those that an object does not have are passed over.
type constants map[string]any

// load loads some programs of an object by themselves, so that one which a
// kernel refuses takes no other with it. edit may change their specification.
func (l *loader) load(object *ebpf.CollectionSpec, values constants, module *btf.Spec, edit func(*ebpf.ProgramSpec), programs ...string) (*ebpf.Collection, error) {
	spec := object.Copy()
	kept := make(map[string]*ebpf.ProgramSpec)
	for _, name := range programs {
		edit(spec.Programs[name])
		kept[name] = spec.Programs[name]
	}
	spec.Programs = kept
	for name, value := range values {
		if v, ok := spec.Variables[name]; ok {
			if err := v.Set(value); err != nil {
				return nil, fmt.Errorf("set constant %s: %w", name, err)
			}
		}
	}
	options := ebpf.CollectionOptions{
		MapReplacements: make(map[string]*ebpf.Map),
		Programs:        ebpf.ProgramOptions{KernelTypes: l.kernel.types},
		Cache:           l.kernel.cache,
	}
	if module != nil {
		options.Programs.ExtraRelocationTargets = []*btf.Spec{module}
	}
	for name, m := range l.probe.maps {
		if ms, ok := spec.Maps[name]; ok {
			ms.MaxEntries = m.MaxEntries()
			options.MapReplacements[name] = m
		}
	}
	var coll *ebpf.Collection
	err := withMemlock(func() (err error) {
		coll, err = ebpf.NewCollectionWithOptions(spec, options)
		return err
	})
	return coll, err
}

// errEmbedded says that an object which is part of this program cannot be read.
var errEmbedded = errors.New("read embedded eBPF object")

// object reads an embedded object and creates the shared maps that it brings along.
func (l *loader) object(read func() (*ebpf.CollectionSpec, error)) (*ebpf.CollectionSpec, error) {
	spec, err := read()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errEmbedded, err)
	}
	return spec, l.shareMaps(spec)
}
