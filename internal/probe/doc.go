// Package probe loads replypath's eBPF programs, attaches them one by one, and
// reads what they tell. What a kernel refuses or does not have is reported,
// never fatal, as long as something can be attached.
package probe
