// Package vm tests the programs on other kernels, and on hosts that make it hard
// for them, in virtual machines: `make test-vm`.
//
// fetch downloads a kernel, boot runs a command on it, suite is what runs there,
// and run does that for several kernels. The tests of this package change the
// host that they run on for good, so they need the build tag vm and refuse to
// run anywhere but in such a machine.
package vm
