package probe

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"sort"
	"strconv"
)

// symbolsPath lists kernel symbols; addresses read as zero without CAP_SYSLOG
// or with kernel.kptr_restrict=2.
const symbolsPath = "/proc/kallsyms"

// Symbols names kernel functions by address.
type Symbols struct {
	addrs []uint64 // ascending
	ends  []uint32 // end of each name in names
	names []byte
}

// ReadSymbols reads the text symbols of /proc/kallsyms.
func ReadSymbols() (*Symbols, error) {
	f, err := os.Open(symbolsPath)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return parseSymbols(f)
}

// parseSymbols reads lines "ffffffff81000000 T _text [module]". Lines that are
// not of this form are passed over.
func parseSymbols(r io.Reader) (*Symbols, error) {
	type symbol struct {
		addr uint64
		name string
	}
	var all []symbol
	scan := bufio.NewScanner(r)
	for scan.Scan() {
		fields := bytes.Fields(scan.Bytes())
		if len(fields) < 3 || len(fields[1]) != 1 {
			continue
		}
		switch fields[1][0] {
		case 't', 'T', 'w', 'W':
		default:
			continue
		}
		addr, err := strconv.ParseUint(string(fields[0]), 16, 64)
		if err != nil || addr == 0 {
			continue
		}
		all = append(all, symbol{addr, string(fields[2])})
	}
	if err := scan.Err(); err != nil {
		return nil, fmt.Errorf("read kernel symbols: %w", err)
	}
	sort.SliceStable(all, func(i, j int) bool { return all[i].addr < all[j].addr })
	s := &Symbols{}
	for _, sym := range all {
		if n := len(s.addrs); n > 0 && s.addrs[n-1] == sym.addr {
			continue // an alias
		}
		s.addrs = append(s.addrs, sym.addr)
		s.names = append(s.names, sym.name...)
		s.ends = append(s.ends, uint32(len(s.names)))
	}
	return s, nil
}

// Len returns the number of symbols; 0 means that the kernel hides its addresses.
func (s *Symbols) Len() int { return len(s.addrs) }

// Name returns the function that holds the address, or "".
func (s *Symbols) Name(addr uint64) string {
	i := sort.Search(len(s.addrs), func(i int) bool { return s.addrs[i] > addr }) - 1
	if i < 0 {
		return ""
	}
	start := uint32(0)
	if i > 0 {
		start = s.ends[i-1]
	}
	return string(s.names[start:s.ends[i]])
}
