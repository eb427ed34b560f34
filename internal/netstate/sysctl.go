package netstate

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
)

// readSysctl reads a number under /proc/sys. The files there are those of the
// calling thread's network namespace (net/sysctl_net.c).
func readSysctl(name string) (int, error) {
	file, err := os.Open("/proc/sys/" + name)
	if err != nil {
		return 0, err
	}
	defer file.Close()
	b, err := io.ReadAll(io.LimitReader(file, 64))
	if err != nil {
		return 0, fmt.Errorf("read sysctl %s: %w", name, err)
	}
	value, err := parseSysctl(b)
	if err != nil {
		return 0, fmt.Errorf("read sysctl %s: %w", name, err)
	}
	return value, nil
}

// parseSysctl reads the one number that a sysctl file holds.
func parseSysctl(b []byte) (int, error) {
	value, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 32)
	if err != nil {
		return 0, fmt.Errorf("parse sysctl: %w", err)
	}
	return int(value), nil
}
