package lab

import (
	"fmt"
	"strings"
)

// String returns the route as ip-route(8) takes it.
func (r Route) String() string {
	var b strings.Builder
	if r.Type != "" {
		b.WriteString(r.Type + " ")
	}
	if r.To.Bits() == 0 {
		b.WriteString("default")
	} else {
		b.WriteString(r.To.String())
	}
	if r.Via.IsValid() {
		b.WriteString(" via " + r.Via.String())
	}
	if r.Device != "" {
		b.WriteString(" dev " + r.Device)
	}
	if r.Table != 0 {
		fmt.Fprintf(&b, " table %d", r.Table)
	}
	return b.String()
}

// String returns the rule as ip-rule(8) takes it.
func (r Rule) String() string {
	var b strings.Builder
	if r.From.IsValid() {
		b.WriteString("from " + r.From.String())
	} else {
		b.WriteString("from all")
	}
	if r.To.IsValid() {
		b.WriteString(" to " + r.To.String())
	}
	if r.Mark != 0 {
		fmt.Fprintf(&b, " fwmark %d", r.Mark)
	}
	if r.Type != "" {
		b.WriteString(" " + r.Type)
	} else {
		fmt.Fprintf(&b, " lookup %d", r.Table)
	}
	fmt.Fprintf(&b, " priority %d", r.Priority)
	return b.String()
}
