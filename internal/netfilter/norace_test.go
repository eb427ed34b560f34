//go:build !race

package netfilter

const raceEnabled = false
