// Package redirect asks a network namespace what its rules make of the traffic
// that a transparent proxy is there for: what is redirected where, who listens
// there, what goes past, IPv4 and IPv6. It does not look for rules by their
// words: netfilter is asked what it would do with sample packets, so that any way
// of writing rules is understood. Nothing is changed and, unless a probe is asked
// for, nothing is sent.
package redirect
