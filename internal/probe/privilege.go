package probe

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"
)

// firstLine puts an error of the library in one line. A refusal is called that:
// the library's own text guesses at RLIMIT_MEMLOCK.
func firstLine(err error) string {
	if errors.Is(err, unix.EPERM) {
		return unix.EPERM.Error()
	}
	line, _, _ := strings.Cut(err.Error(), "\n")
	return omitted.ReplaceAllString(line, "")
}

// omitted is what the library says of the rest of the verifier's log.
var omitted = regexp.MustCompile(` \(\d+ line\(s\) omitted\)`)

// isLockdown reports a refusal because the kernel is locked down: that takes the
// helpers away that read the kernel's memory.
func isLockdown(err error) bool {
	text := err.Error()
	return strings.Contains(text, "unknown func bpf_probe_read") || strings.Contains(text, "cannot use helper bpf_probe_read")
}

// neededCapabilities are those without which loading fails (kernel 5.8 on).
var neededCapabilities = []struct {
	bit  uint
	name string
}{{unix.CAP_BPF, "CAP_BPF"}, {unix.CAP_PERFMON, "CAP_PERFMON"}}

// advice says what is known of why the kernel refused, and what to do; "" when nothing is.
func advice(err error) string {
	if isLockdown(err) {
		return "; the kernel is locked down (confidentiality) and lets no program read its memory: boot it with lockdown=integrity, or without"
	}
	if !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EACCES) {
		return ""
	}
	if missing := missingCapabilities(); missing != "" {
		return fmt.Sprintf("; this process lacks %s: run it as root, or give it these capabilities", missing)
	}
	if limit, limited := memlockLimit(); limited && errors.Is(err, unix.EPERM) {
		return fmt.Sprintf("; kernels before 5.11 count eBPF memory against RLIMIT_MEMLOCK, which is %d KiB here: "+
			"raise it (ulimit -l unlimited; systemd: LimitMEMLOCK=infinity) or give this process CAP_SYS_RESOURCE", limit>>10)
	}
	return ""
}

// missingCapabilities names what this process lacks of what loading needs.
func missingCapabilities() string {
	effective, err := effectiveCapabilities()
	if err != nil || effective&(1<<unix.CAP_SYS_ADMIN) != 0 {
		return ""
	}
	var missing []string
	for _, c := range neededCapabilities {
		if effective&(1<<c.bit) == 0 {
			missing = append(missing, c.name)
		}
	}
	return strings.Join(missing, " and ")
}

// memlockLimit returns RLIMIT_MEMLOCK in bytes; false when there is none.
func memlockLimit() (uint64, bool) {
	var limit unix.Rlimit
	if err := unix.Prlimit(0, unix.RLIMIT_MEMLOCK, nil, &limit); err != nil {
		return 0, false
	}
	return limit.Cur, limit.Cur != unix.RLIM_INFINITY
}

// withMemlock does what takes locked memory on kernels before 5.11. When it is
// refused, this process's own limit is lifted, if it may, and it is done again.
func withMemlock(do func() error) error {
	err := do()
	if !errors.Is(err, unix.EPERM) {
		return err
	}
	if _, limited := memlockLimit(); !limited {
		return err
	}
	unlimited := unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}
	if unix.Prlimit(0, unix.RLIMIT_MEMLOCK, &unlimited, nil) != nil {
		return err
	}
	return do()
}

// HasCapability reports whether this process has a capability in its effective
// set; true when that cannot be read.
func HasCapability(bit int) bool {
	effective, err := effectiveCapabilities()
	return err != nil || effective&(1<<bit) != 0
}

// effectiveCapabilities reads CapEff of proc_pid_status(5).
func effectiveCapabilities() (uint64, error) {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if hex, ok := strings.CutPrefix(line, "CapEff:"); ok {
			var caps uint64
			_, err := fmt.Sscanf(strings.TrimSpace(hex), "%x", &caps)
			return caps, err
		}
	}
	return 0, errors.New("no CapEff in /proc/self/status")
}
