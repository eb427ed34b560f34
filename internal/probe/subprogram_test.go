package probe

import (
	"testing"

	"github.com/cilium/ebpf"
)

// TestNoSubprograms: a program that consists of several functions may panic kernels before 6.5 when it reads from
// a NULL pointer, which is usual: which of two tables of such reads is found, that of the program or the empty one,
// depends on addresses (mended by 0108a4e9f358, "bpf: ensure main program has an extable").
func TestNoSubprograms(t *testing.T) {
	for name, load := range map[string]func() (*ebpf.CollectionSpec, error){
		"drop": loadDrop, "icmp": loadIcmp, "neighbor": loadNeighbor, "packet": loadPacket,
		"route": loadRoute, "tcp": loadTcp, "verdict": loadVerdict,
	} {
		spec, err := load()
		if err != nil {
			t.Fatal(err)
		}
		if len(spec.Programs) == 0 {
			t.Errorf("%s: no programs", name)
		}
		for _, program := range spec.Programs {
			for i := range program.Instructions {
				if in := &program.Instructions[i]; in.IsFunctionCall() || in.IsLoadOfFunctionPointer() {
					t.Errorf("%s calls a function of its own: %v", program.Name, in)
				}
			}
		}
	}
}
