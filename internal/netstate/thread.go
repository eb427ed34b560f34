package netstate

import (
	"fmt"
	"os"
	"runtime"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// enter starts a goroutine that runs work on an OS thread of its own inside
// the namespace target, and returns at once. Then the thread goes back to own,
// and ended is called, with an error if target could not be entered. A thread
// that cannot go back is given up: a goroutine that ends while it is locked
// takes its thread along (runtime.LockOSThread).
func enter(own, target netns.NsHandle, work func(), ended func(error)) {
	go onOtherThread(func() {
		if err := unix.Setns(int(target), unix.CLONE_NEWNET); err != nil {
			runtime.UnlockOSThread()
			ended(fmt.Errorf("enter network namespace: %w", err))
			return
		}
		work()
		if err := unix.Setns(int(own), unix.CLONE_NEWNET); err == nil {
			runtime.UnlockOSThread()
		}
		ended(nil)
	})
}

// onOtherThread runs visit on a locked thread that is not the process's first:
// /proc/self, and what others see of this process, follow that one. visit
// unlocks the thread.
func onOtherThread(visit func()) {
	runtime.LockOSThread()
	if unix.Gettid() != os.Getpid() {
		visit()
		return
	}
	defer runtime.UnlockOSThread()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		visit()
	}()
	<-done
}
