package trace

import "strings"

// SwitchState is what the kernel's Open vSwitch datapath says of a packet that
// came to one of its ports. The zero value: the device is no port of one.
type SwitchState struct {
	Known    bool
	Datapath string // as ovs-dpctl(8) calls it: "ovs-system"
	Port     Device // the port that the packet came by
	Number   uint32 // of the port in the datapath
	// Deaf: packets without a flow are for sockets that nobody has open (any
	// more): ovs-vswitchd does not run, or has lost its datapath.
	Deaf bool
	// Lost is how many packets found no room on their way to the daemon, since the datapath is there.
	Lost uint64
	// Dropping are the datapath's flows that fit the packet and send it nowhere.
	Dropping []SwitchFlow
	// Passing counts those that fit, and do something else with it.
	Passing int
}

// SwitchFlow is an entry of the datapath's flow table.
type SwitchFlow struct {
	Match   string // as `ovs-appctl dpctl/dump-flows` writes it, what it does not look at left out
	Packets uint64
	Certain bool // all that it looks at is known of the packet, and fits
}

// switchFunctions are the beginnings of the names of the datapath's functions that
// drop (net/openvswitch: datapath.c, vport.c, actions.c).
var switchFunctions = []string{"ovs_", "do_execute_actions", "do_output"}

// BySwitch reports a drop by Open vSwitch's kernel datapath: by its own reasons
// (6.6), or in its functions.
func (e *Event) BySwitch() bool {
	if e.Hook != HookDrop {
		return false
	}
	if strings.HasPrefix(e.Reason, "OVS_DROP_") {
		return true
	}
	for _, function := range switchFunctions {
		if strings.HasPrefix(e.Symbol, function) {
			return true
		}
	}
	return false
}
