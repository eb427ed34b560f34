// Package render turns the messages of api/trace/v1 into text for people and
// JSON lines for programs.
//
// Its functions are pure: they read no clock, no environment and no terminal.
// Everything that comes from the network, the kernel or another host (device
// names, namespaces, process names, rule comments) is untrusted and escaped.
package render
