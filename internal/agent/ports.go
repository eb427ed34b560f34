package agent

import (
	"fmt"
	"strconv"
	"strings"
)

// PortList is a flag (pflag.Value) that holds ports, and may be given more than once.
type PortList []uint16

// String implements pflag.Value.
func (l *PortList) String() string { return "" }

// Type implements pflag.Value.
func (l *PortList) Type() string { return "port" }

// Set implements pflag.Value.
func (l *PortList) Set(s string) error {
	for text := range strings.SplitSeq(s, ",") {
		port, err := strconv.ParseUint(text, 10, 16)
		if err != nil || port == 0 {
			return fmt.Errorf("%q is no port from 1 to 65535", text)
		}
		*l = append(*l, uint16(port))
	}
	return nil
}
