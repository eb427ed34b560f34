package diagnose

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"unicode"

	"github.com/replypath/replypath/pkg/trace"
)

// at makes a shell command run in the namespace of a place, from the node.
func at(p trace.Place, format string, args ...any) string {
	command := fmt.Sprintf(format, args...)
	switch {
	case p.Host:
		return command
	case p.Name != "":
		return "ip netns exec " + quote(p.Name) + " " + command
	case p.PID != 0:
		return fmt.Sprintf("nsenter --target %d --net %s", p.PID, command)
	}
	return fmt.Sprintf("# in network namespace %d, which has no name and no process: %s", p.Netns, command)
}

// ipCommand is `ip`, or `ip -6` for an IPv6 address.
func ipCommand(a netip.Addr) string {
	if a.Is6() {
		return "ip -6"
	}
	return "ip"
}

// quote makes s one word for a POSIX shell.
func quote(s string) string {
	plain := s != "" && strings.IndexFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("._-/:@%+=", r))
	}) < 0
	if plain {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// sysctlKey writes a sysctl name whose device part may hold a dot, as sysctl(8) reads it.
func sysctlKey(family, device, key string) string {
	return "net." + family + ".conf." + strings.ReplaceAll(device, ".", "/") + "." + key
}

// name calls a place what its operator calls it.
func name(p trace.Place) string {
	switch {
	case p.Workload != "":
		return p.Workload
	case p.Name != "":
		return printable(p.Name)
	case p.Host:
		return "this host's own namespace"
	}
	return fmt.Sprintf("network namespace %d", p.Netns)
}

// printable keeps text that somebody else chose in one line.
func printable(s string) string {
	if strings.IndexFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) < 0 {
		return s
	}
	return strconv.Quote(s)
}

// host is the prefix that holds one address alone.
func host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// isDefault reports whether a prefix is the default route's.
func isDefault(p netip.Prefix) bool { return p.IsValid() && p.Bits() == 0 }

// showPrefix writes a route's prefix as ip-route(8) does.
func showPrefix(p netip.Prefix) string {
	if isDefault(p) {
		return "default"
	}
	return p.String()
}

// Routing tables of include/uapi/linux/rtnetlink.h.
const (
	tableMain  = 254
	tableLocal = 255
)

// showTable names a routing table as ip-route(8) does.
func showTable(t uint32) string {
	switch t {
	case 253:
		return "default"
	case tableMain:
		return "main"
	case 255:
		return "local"
	}
	return fmt.Sprint(t)
}

// tableArg is the argument that names a table other than main.
func tableArg(t uint32) string {
	if t == 0 || t == tableMain {
		return ""
	}
	return " table " + showTable(t)
}
