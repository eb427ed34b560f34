package probe

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/ebpf"
)

// symbolsPath lists kernel symbols; addresses read as zero without CAP_SYSLOG
// or with kernel.kptr_restrict=2.
const symbolsPath = "/proc/kallsyms"

// reloadInterval is how often the symbol table is read at most while the modules
// stay the same. It is read again for an address in none of those that it knows.
const reloadInterval = time.Second

// symbols names kernel functions by address: as the kernel named them when it told
// the address, which knows modules and hides nothing; on kernels that cannot
// (before 5.13), by /proc/kallsyms, which is read when it is first needed.
type symbols struct {
	named *ebpf.Map // the map "symbols" of bpf/maps.h
	names map[uint64]string
	table *symbolTable
	read  time.Time
	// modules is where modules were when the table was read.
	modules []span
}

func newSymbols(named *ebpf.Map) *symbols {
	return &symbols{named: named, names: make(map[uint64]string)}
}

// name returns the function that holds the address, or "".
func (s *symbols) name(addr uint64) string {
	if name, ok := s.names[addr]; ok {
		return name
	}
	if len(s.names) >= maxCached {
		clear(s.names)
	}
	name := s.nameByKernel(addr)
	if name == "" {
		name = s.nameByTable(addr)
	}
	if name != "" {
		s.names[addr] = name
	}
	return name
}

// nameByKernel reads what bpf_snprintf's %ps wrote: "nft_do_chain [nf_tables]", or
// a number when there is no such function.
func (s *symbols) nameByKernel(addr uint64) string {
	var written dropSymbolName
	if s.named == nil || s.named.Lookup(addr, &written) != nil {
		return ""
	}
	name, _, _ := strings.Cut(text(&written.Name), " ")
	if strings.HasPrefix(name, "0x") {
		return ""
	}
	return name
}

func (s *symbols) nameByTable(addr uint64) string {
	name := s.table.name(addr)
	if name == "" && s.isOld() && s.readTable() {
		name = s.table.name(addr)
	}
	return name
}

// isOld reports whether the table may know more if it is read again: a module's
// first packets come as soon as it is loaded.
func (s *symbols) isOld() bool {
	if time.Since(s.read) > reloadInterval {
		return true
	}
	modules, err := readModules()
	return err == nil && !slices.Equal(modules, s.modules)
}

// readTable reads /proc/kallsyms, and reports whether it has addresses.
func (s *symbols) readTable() bool {
	s.read = time.Now()
	modules, err := readModules()
	if err != nil {
		return false
	}
	s.modules = modules
	table, err := readSymbolTable(modules)
	if err != nil || len(table.addrs) == 0 {
		return false
	}
	s.table = table
	return true
}

// symbolTable is what /proc/kallsyms lists.
type symbolTable struct {
	addrs []uint64 // ascending
	ends  []uint32 // end of each name in names
	names []byte
	spans []span // of memory that it knows: the kernel's own code, and each module
}

// span is the addresses from start to before end.
type span struct{ start, end uint64 }

func (s span) holds(addr uint64) bool { return s.start <= addr && addr < s.end }

// readSymbolTable reads the text symbols of /proc/kallsyms.
func readSymbolTable(modules []span) (*symbolTable, error) {
	symbols, err := os.Open(symbolsPath)
	if err != nil {
		return nil, err
	}
	defer symbols.Close()
	return parseSymbols(symbols, modules)
}

// modulesPath lists modules with size and address: "nf_tables 270336 0 - Live 0xffffffffc0a3c000".
const modulesPath = "/proc/modules"

// readModules returns where modules are.
func readModules() ([]span, error) {
	modules, err := os.ReadFile(modulesPath)
	if err != nil && !errors.Is(err, os.ErrNotExist) { // a kernel may have no modules at all
		return nil, err
	}
	return parseModules(bytes.NewReader(modules)), nil
}

func parseModules(r io.Reader) (spans []span) {
	scan := bufio.NewScanner(r)
	for scan.Scan() {
		fields := strings.Fields(scan.Text())
		if len(fields) < 6 {
			continue
		}
		size, sizeErr := strconv.ParseUint(fields[1], 10, 32)
		start, startErr := strconv.ParseUint(fields[5], 0, 64)
		if sizeErr == nil && startErr == nil && start != 0 {
			spans = append(spans, span{start, start + size})
		}
	}
	return spans
}

// parseSymbols reads lines "ffffffff81000000 T _text [module]". Lines that are not
// of this form are passed over.
func parseSymbols(r io.Reader, modules []span) (*symbolTable, error) {
	kernel := span{start: ^uint64(0)}
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
		if len(fields) == 3 {
			kernel.start, kernel.end = min(kernel.start, addr), max(kernel.end, addr+1)
		}
	}
	if err := scan.Err(); err != nil {
		return nil, fmt.Errorf("read kernel symbols: %w", err)
	}
	sort.SliceStable(all, func(i, j int) bool { return all[i].addr < all[j].addr })
	s := &symbolTable{spans: append(slices.Clone(modules), kernel)}
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

// name returns the function that holds the address; "" when it is in none of
// the modules that the table knows.
func (s *symbolTable) name(addr uint64) string {
	if s == nil || !slices.ContainsFunc(s.spans, func(known span) bool { return known.holds(addr) }) {
		return ""
	}
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
