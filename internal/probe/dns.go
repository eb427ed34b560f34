package probe

import (
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
)

// portDNS is where DNS is spoken (RFC 1035, section 4.2).
const portDNS = 53

// dnsPorts sets the ports that DNS is looked for on. Those that conntrack says
// port 53 is redirected to the programs add by themselves.
func (p *Probe) dnsPorts(more []uint16) error {
	var ports packetDnsPorts
	for _, port := range append([]uint16{portDNS}, more...) {
		ports.Bits[port/64] |= 1 << (port % 64)
	}
	if err := p.maps[packetMapDnsPorts].Put(uint32(0), &ports); err != nil {
		return fmt.Errorf("set the ports of DNS: %w", err)
	}
	return nil
}

// statusPages is how status tells whether TCP's data can be read.
const statusPages = "dns:tcp_payload"

// mayReadPages: whether the kernel could have what it takes to read an skb's pages at a
// tracepoint. It has the function since 6.4, and allows it there since 6.12: that shows in loading.
func (k *kernel) mayReadPages() bool {
	var f *btf.Func
	return k.typed && k.types.TypeByName("bpf_dynptr_from_skb", &f) == nil
}

// loadReading loads a program of an object that reads pages where the kernel lets it, and notes whether it does.
func (l *loader) loadReading(object *ebpf.CollectionSpec, values constants, edit func(*ebpf.ProgramSpec), program string) (*ebpf.Collection, error) {
	if _, ok := object.Variables[packetVarReadsPages]; !ok {
		return l.load(object, values, nil, edit, program)
	}
	values[packetVarReadsPages] = true
	if l.kernel.mayReadPages() {
		if coll, err := l.load(object, values, nil, edit, program); err == nil {
			l.readsPages = true
			return coll, nil
		}
	}
	l.readsPages = false
	values[packetVarReadsPages] = false
	return l.load(object, values, nil, edit, program)
}

// pagesStatus tells of a gap that no hook shows.
func (l *loader) pagesStatus() HookStatus {
	s := HookStatus{Name: statusPages, State: Attached, Means: "dynptr", Optional: true}
	if !l.readsPages {
		s.State, s.Means = Absent, ""
		s.Reason = "this kernel does not let a tracepoint read what TCP sends: of DNS over TCP only messages that lie in a packet's first part are seen"
	}
	return s
}
