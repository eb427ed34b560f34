package probe

import (
	"testing"
	"time"
)

// A module is tried once, a little after it has appeared; one that is there from the beginning, not again.
func TestModuleThatAppears(t *testing.T) {
	now := time.Now()
	f := attachedFunction{function: function{module: "no_such_module"}, status: HookStatus{State: Absent}}
	f.look()
	if f.isDue(now) {
		t.Error("due without its module")
	}
	f.module = loadedModule(t)
	due := 0
	for range 5 {
		f.look()
		if f.isDue(now) {
			due++
		}
	}
	if due != 1 {
		t.Errorf("due %d times, want once", due)
	}
}

// loadedModule names something that /sys/module has on every kernel.
func loadedModule(t *testing.T) string {
	const name = "kernel" // holds the parameters of the kernel itself
	if !isLoaded(name) {
		t.Skipf("no /sys/module/%s", name)
	}
	return name
}

// Functions that are called too often are let alone for a while, the busiest first.
func TestBusyFunctionsArePaused(t *testing.T) {
	now := time.Now()
	p := &Probe{functions: []attachedFunction{
		{status: HookStatus{Name: "netfilter:busy", State: Attached, Means: "fexit"}, counter: 0},
		{status: HookStatus{Name: "netfilter:calm", State: Attached, Means: "fexit"}, counter: 1},
		{status: HookStatus{Name: "netfilter:kprobe", State: Attached, Means: "kprobe"}, counter: 2},
	}}
	calls := []uint64{500_000, 1000, 1000} // a second
	p.pauseBusy(now, time.Second, func(counter uint32) uint64 { return calls[counter] })
	if s := p.functions[0].status; s.State != Paused || s.Reason == "" {
		t.Errorf("500,000 calls a second: %+v", s)
	}
	for _, f := range p.functions[1:] {
		if f.status.State != Attached {
			t.Errorf("1,000 calls a second: %+v", f.status)
		}
	}
	if p.Tier() != TierPlus {
		t.Errorf("tier %s while a function is paused", p.Tier())
	}
	if f := &p.functions[0]; f.isDue(now.Add(pauseTime/2)) || !f.isDue(now.Add(2*pauseTime)) {
		t.Error("not due again after the pause")
	}
}
