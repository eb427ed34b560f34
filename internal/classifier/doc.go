// Package classifier judges what the BPF programs and tc filters of a device
// would make of a packet that has not come yet: u32, flower and matchall filters
// by what they compare, programs by running them on a copy of the packet
// (BPF_PROG_TEST_RUN), which the kernel then throws away. Programs that keep
// state or call the kernel are run only where that is allowed, because their
// counters would count a packet that nobody sent.
package classifier
