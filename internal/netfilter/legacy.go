package netfilter

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"unsafe"

	"github.com/replypath/replypath/pkg/trace"
	"golang.org/x/sys/unix"
)

// Socket options of iptables (include/uapi/linux/netfilter_ipv4/ip_tables.h); those
// of IPv6 have the same numbers.
const (
	optGetInfo    = 64 // IPT_SO_GET_INFO
	optGetEntries = 65 // IPT_SO_GET_ENTRIES

	tableNameSize    = 32                                  // XT_TABLE_MAXNAMELEN
	infoSize         = tableNameSize + 4 + 20 + 20 + 4 + 4 // struct ipt_getinfo
	entriesHeader    = 40                                  // struct ipt_get_entries up to its entries
	mostLegacyBytes  = 64 << 20
	legacyHooks      = 5
	legacyNamesLimit = 4096
)

// legacyTables are the tables of iptables-legacy and the priorities at which
// they are hooked in (NF_IP_PRI_*). nat has one for each direction.
var legacyTables = map[string]func(hook int) int32{
	"raw":    func(int) int32 { return priorityRaw },
	"mangle": func(int) int32 { return priorityMangle },
	"nat": func(hook int) int32 {
		if hook == hookPrerouting || hook == hookOutput {
			return priorityDNAT
		}
		return prioritySNAT
	},
	"filter":   func(int) int32 { return priorityFilter },
	"security": func(int) int32 { return prioritySecurity },
}

// readLegacy reads the tables of iptables-legacy that the namespace has and that
// are hooked in where it matters. Asking for a table creates it, so only those
// that the kernel lists are asked for.
func readLegacy(f family, at []trace.NetfilterHook) ([]*table, error) {
	names, err := legacyNames(f)
	if err != nil || len(names) == 0 {
		return nil, err
	}
	domain := unix.AF_INET
	if f == familyIP6 {
		domain = unix.AF_INET6
	}
	// Any socket of the family will do; a raw one would ask for CAP_NET_RAW.
	fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open socket: %w", err)
	}
	defer unix.Close(fd)
	var tables []*table
	var errs []error
	for _, name := range names {
		priority := legacyTables[name]
		if priority == nil {
			continue
		}
		t, err := readLegacyTable(fd, f, name, hookMask(at))
		if err != nil {
			errs = append(errs, fmt.Errorf("read iptables-legacy table %q: %w", name, err))
		}
		if t != nil {
			tables = append(tables, t)
		}
	}
	return tables, errors.Join(errs...)
}

// legacyNames reads the list of tables of the calling thread's namespace.
func legacyNames(f family) ([]string, error) {
	path := "/proc/thread-self/net/ip_tables_names"
	if f == familyIP6 {
		path = "/proc/thread-self/net/ip6_tables_names"
	}
	b, err := os.ReadFile(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("list iptables-legacy tables: %w", err)
	}
	return strings.Fields(string(b[:min(len(b), legacyNamesLimit)])), nil
}

// hookMask turns hooks into the bits of legacyInfo.hooks.
func hookMask(at []trace.NetfilterHook) uint32 {
	var mask uint32
	for _, h := range at {
		if n, ok := ipHooks[h]; ok {
			mask |= 1 << n
		}
	}
	return mask
}

// readLegacyTable reads one table; nil when it has no chain at the hooks.
func readLegacyTable(fd int, f family, name string, hooks uint32) (*table, error) {
	level := unix.SOL_IP
	if f == familyIP6 {
		level = unix.SOL_IPV6
	}
	// The table may be replaced between the two calls; the kernel then answers EAGAIN.
	for range 3 {
		info := make([]byte, infoSize)
		copy(info[:tableNameSize-1], name)
		if _, err := getsockopt(fd, level, optGetInfo, info); err != nil {
			return nil, err
		}
		about := decodeLegacyInfo(info)
		if about.hooks&hooks == 0 {
			return nil, nil
		}
		if about.size > mostLegacyBytes {
			return nil, errMany
		}
		entries := make([]byte, entriesHeader+int(about.size))
		copy(entries[:tableNameSize-1], name)
		*(*uint32)(unsafe.Pointer(&entries[tableNameSize])) = about.size
		n, err := getsockopt(fd, level, optGetEntries, entries)
		if errors.Is(err, unix.EAGAIN) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if n < entriesHeader {
			return nil, errors.New("answer too short")
		}
		return decodeLegacyTable(f, name, about, entries[entriesHeader:n])
	}
	return nil, unix.EAGAIN
}

// getsockopt reads an option whose value says what is asked for.
func getsockopt(fd, level, option int, value []byte) (int, error) {
	n := uint32(len(value))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(option),
		uintptr(unsafe.Pointer(&value[0])), uintptr(unsafe.Pointer(&n)), 0)
	if errno != 0 {
		return 0, os.NewSyscallError("getsockopt", errno)
	}
	return int(min(n, uint32(len(value)))), nil
}

// legacyInfo is struct ipt_getinfo.
type legacyInfo struct {
	hooks     uint32 // bit for each hook that the table is hooked into
	entry     [legacyHooks]uint32
	underflow [legacyHooks]uint32
	count     uint32
	size      uint32
}

func decodeLegacyInfo(b []byte) legacyInfo {
	r := &reader{data: b}
	r.skip(tableNameSize)
	i := legacyInfo{hooks: r.u32()}
	for n := range i.entry {
		i.entry[n] = r.u32()
	}
	for n := range i.underflow {
		i.underflow[n] = r.u32()
	}
	i.count, i.size = r.u32(), r.u32()
	return i
}
