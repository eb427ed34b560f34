package probe

import (
	"fmt"
	"os"

	"github.com/cilium/ebpf/btf"
)

// btfPath is where a kernel shows its own types (CONFIG_DEBUG_INFO_BTF).
const btfPath = "/sys/kernel/btf/vmlinux"

// kernel is what is known of the running kernel's types.
type kernel struct {
	types *btf.Spec
	// cache holds what was read of the kernel and its modules, so that it is read once.
	cache *btf.Cache
	// typed: the kernel has its own types loaded, and knows those of the arguments
	// that it hands to programs (tp_btf, fexit). Without, arguments are numbers.
	typed bool
}

// readKernel reads the kernel's types: from file, if one is named, else from the
// kernel itself, else from an uncompressed kernel image where distributions put it.
func readKernel(file string) (*kernel, error) {
	k := &kernel{cache: btf.NewCache()}
	_, err := os.Stat(btfPath)
	k.typed = err == nil
	if file == "" {
		if k.types, err = k.cache.Kernel(); err != nil {
			return nil, fmt.Errorf("%w: this kernel does not show its types (no %s, CONFIG_DEBUG_INFO_BTF): "+
				"name a file with the BTF of exactly this kernel with --btf, for example one from BTFHub", ErrUnsupported, btfPath)
		}
		return k, nil
	}
	if k.types, err = btf.LoadSpec(file); err != nil {
		return nil, fmt.Errorf("%w: read kernel types from --btf %s: %s", ErrUnsupported, file, firstLine(err))
	}
	var skb *btf.Struct
	if err := k.types.TypeByName("sk_buff", &skb); err != nil {
		return nil, fmt.Errorf("%w: --btf %s: it has no struct sk_buff, so it is not the BTF of a kernel", ErrUnsupported, file)
	}
	return k, nil
}

// module returns the types of a module: nil when it is not loaded, or shows none.
func (k *kernel) module(name string) *btf.Spec {
	if !k.typed {
		return nil
	}
	spec, err := k.cache.Module(name)
	if err != nil {
		return nil
	}
	return spec
}

// function finds the prototype of a function of the kernel itself or of a module.
func (k *kernel) function(name, module string) *btf.FuncProto {
	for _, spec := range []*btf.Spec{k.types, k.module(module)} {
		var f *btf.Func
		if spec == nil || spec.TypeByName(name, &f) != nil {
			continue
		}
		if proto, ok := f.Type.(*btf.FuncProto); ok {
			return proto
		}
	}
	return nil
}
