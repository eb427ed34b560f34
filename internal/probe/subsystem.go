package probe

import (
	"runtime/debug"
	"time"

	"github.com/cilium/ebpf/btf"
)

// Drop reasons above 16 bits are those of a module (SKB_DROP_REASON_SUBSYS_SHIFT,
// include/net/dropreason.h, 6.6), which names them in an enum of its own.
const subsystemShift = 16

// subsystems are the modules' enums.
var subsystems = []struct{ module, enum string }{
	{"openvswitch", "ovs_drop_reason"},
}

// moduleReasons are the drop reasons of modules. A module may be loaded long after
// the start, so its types are read when it gives a reason that is not known yet.
// The zero value is ready.
type moduleReasons struct {
	known map[int32]string
	read  time.Time
}

// rereadInterval is how often modules' types are read at most: it takes a tenth of
// a second, and 30 MB for as long.
const rereadInterval = time.Minute

// name returns what a module calls its reason; "" when it does not tell.
func (m *moduleReasons) name(reason int32) string {
	if name, ok := m.known[reason]; ok {
		return name
	}
	if time.Since(m.read) < rereadInterval {
		return ""
	}
	m.known = readModuleReasons()
	m.read = time.Now()
	debug.FreeOSMemory()
	return m.known[reason]
}

func readModuleReasons() map[int32]string {
	known := make(map[int32]string)
	cache := btf.NewCache()
	for _, s := range subsystems {
		if !isLoaded(s.module) {
			continue
		}
		types, err := cache.Module(s.module)
		if err != nil {
			continue
		}
		for value, name := range readReasons(types, s.enum, "") {
			known[value] = name
		}
	}
	return known
}

// upcallFunction is what Open vSwitch's datapath asks its daemon with.
const upcallFunction = "ovs_dp_upcall"
