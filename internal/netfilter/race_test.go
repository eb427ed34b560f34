//go:build race

package netfilter

const raceEnabled = true
