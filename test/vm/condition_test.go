//go:build vm

package vm

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// condition is something of a host that makes it hard to trace there.
type condition struct {
	name string   // as the matrix shows it
	wrap []string // runs a command under the condition
	args []string // of replypath
	labs []string // that are explained under it; nil: defaultLabs
	must bool     // it must work, saying why not is not enough
}

// defaultLabs is a fault without a drop: tracepoints and the state of the host tell it.
var defaultLabs = []string{"dsr-no-route"}

// check demands that labs are explained as ever under the condition, or that
// the program ends with 3 and says in one line what to do; and notes for the
// matrix which of the two it was.
func (c condition) check(t *testing.T) {
	t.Helper()
	says, labs := "", c.labs
	if labs == nil {
		labs = defaultLabs
	}
	a, results := runLabs(t, labs, c.wrap, c.args)
	switch {
	case a.code == 3 && !c.must:
		says = c.refusal(t, a)
	case a.code != 0 || len(results) != len(labs):
		t.Errorf("%s: exit %d; want exit 0 and labs %q as they should be, got: %+v", c.name, a.code, labs, results)
	}
	c.note(t, says)
}

// refusal returns the line that says why it is impossible, and what to do.
func (c condition) refusal(t *testing.T, a answer) string {
	t.Helper()
	line := a.complaint()
	if strings.Contains(line, "\n") || !strings.HasPrefix(line, "replypath: ") || len(a.stdout) > 0 {
		t.Errorf("%s: want one line that says what to do, got:\n%s\nand on stdout: %s", c.name, line, a.stdout)
	}
	return strings.TrimPrefix(line, "replypath: ")
}

// note writes for the matrix what became of a condition. One that fails is no
// result: the run fails then.
func (c condition) note(t *testing.T, says string) {
	t.Helper()
	dir := os.Getenv("VM_RESULTS")
	if dir == "" || t.Failed() {
		return
	}
	file, err := os.OpenFile(filepath.Join(dir, "conditions.json"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	err = json.NewEncoder(file).Encode(map[string]any{"condition": map[string]any{"name": c.name, "works": says == "", "says": says}})
	if err != nil {
		t.Fatal(err)
	}
}

// setSysctl changes a setting until the test ends.
func setSysctl(t *testing.T, name, value string) {
	t.Helper()
	path := filepath.Join("/proc/sys", strings.ReplaceAll(name, ".", "/"))
	old, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(value), 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.WriteFile(path, old, 0); err != nil {
			t.Error(err)
		}
	})
}

// Addresses of kernel symbols read as zero, also for root.
func TestUnreadableSymbols(t *testing.T) {
	setSysctl(t, "kernel.kptr_restrict", "2")
	// Where a filter drops is told by the address of a function.
	labs := []string{"routed-forward-drop", "local-client-input-drop"}
	condition{name: "`kernel.kptr_restrict=2`", labs: labs, must: true}.check(t)
}

// Kernels before 5.11 count the memory of eBPF against this limit, which is 64
// KiB by default. Root may lift it.
func TestMemoryLimit(t *testing.T) {
	t.Parallel()
	wrap := []string{"prlimit", "--memlock=65536:65536"}
	condition{name: "`RLIMIT_MEMLOCK` of 64 KiB", wrap: wrap, must: true}.check(t)
}

// Whoever may not lift it has to be told.
func TestMemoryLimitWithoutResource(t *testing.T) {
	t.Parallel()
	wrap := []string{"prlimit", "--memlock=65536:65536", "setpriv", "--bounding-set=-sys_resource"}
	condition{name: "`RLIMIT_MEMLOCK` of 64 KiB, no `CAP_SYS_RESOURCE`", wrap: wrap}.check(t)
}

// withoutTypes hides the kernel's BTF in a mount namespace of its own.
func withoutTypes(t *testing.T) []string {
	t.Helper()
	return []string{"unshare", "--mount", "sh", "-euc", `mount --bind "$0" /sys/kernel/btf; exec "$@"`, t.TempDir()}
}

func TestWithoutTypes(t *testing.T) {
	t.Parallel()
	condition{name: "no BTF in the kernel", wrap: withoutTypes(t)}.check(t)
}

func TestTypesFromFile(t *testing.T) {
	t.Parallel()
	types, err := os.ReadFile("/sys/kernel/btf/vmlinux")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "vmlinux.btf")
	if err := os.WriteFile(file, types, 0o644); err != nil {
		t.Fatal(err)
	}
	// Hooks are attached in another way then, and read their arguments in another way.
	labs := []string{"routed-healthy", "dsr6-blackhole", "routed-forward-drop"}
	condition{name: "no BTF in the kernel, with `--btf FILE`", wrap: withoutTypes(t), args: []string{"--btf", file}, labs: labs, must: true}.check(t)
}

// A file that holds no BTF, or that of something else, is a user's mistake: it must be said, not traced with.
func TestTypesFromWrongFile(t *testing.T) {
	t.Parallel()
	for name, content := range map[string]string{"empty": "", "text": "this is no BTF\n"} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "wrong")
			if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
				t.Fatal(err)
			}
			a := run(t, program("replypath"), "status", "--btf", file)
			line := a.complaint()
			if a.code != 3 || strings.Contains(line, "\n") || !strings.Contains(line, file) {
				t.Errorf("exit %d, %q; want exit 3 and one line that names the file", a.code, line)
			}
		})
	}
}

// Controllers of the first version take the second one's place. Which of them a
// kernel still has differs; one is enough.
func TestControlGroupsV1(t *testing.T) {
	t.Parallel()
	wrap := []string{"unshare", "--mount", "sh", "-euc", `
		umount /sys/fs/cgroup
		mount -t tmpfs cgroup /sys/fs/cgroup
		mounted=
		for controllers in memory cpu,cpuacct pids net_cls,net_prio; do
			mkdir /sys/fs/cgroup/$controllers
			if mount -t cgroup -o $controllers cgroup /sys/fs/cgroup/$controllers 2>/dev/null; then mounted=yes; fi
		done
		test "$mounted"
		exec "$@"`, "sh"}
	condition{name: "cgroup v1 in place of v2", wrap: wrap, must: true}.check(t)
}

// A kernel that is locked down lets no program read its memory. Only a reboot
// takes it back, so this test runs last, and by itself.
func TestLockdown(t *testing.T) {
	if err := os.WriteFile("/sys/kernel/security/lockdown", []byte("confidentiality"), 0); err != nil {
		t.Fatal(err)
	}
	condition{name: "`lockdown=confidentiality`"}.check(t)
}
