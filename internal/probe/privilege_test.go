package probe

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// What the library says is one line, without counts that tell a user nothing.
func TestFirstLine(t *testing.T) {
	for text, want := range map[string]string{
		"load program: bad CO-RE relocation (160 line(s) omitted)": "load program: bad CO-RE relocation",
		"first\nsecond": "first",
	} {
		if got := firstLine(errors.New(text)); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	if got := firstLine(fmt.Errorf("load program: %w (MEMLOCK may be too low)", unix.EPERM)); got != "operation not permitted" {
		t.Errorf("a refusal is called %q", got)
	}
}

// Kernels word a refusal by lockdown in two ways (bpf_base_func_proto, kernel/bpf/verifier.c).
func TestAdviceOnLockdown(t *testing.T) {
	for _, text := range []string{
		"load program: invalid argument: unknown func bpf_probe_read#4",
		"load program: invalid argument: program of this type cannot use helper bpf_probe_read_kernel#113",
	} {
		if got := advice(errors.New(text)); !strings.Contains(got, "locked down") {
			t.Errorf("%s: %q", text, got)
		}
	}
	if got := advice(errors.New("load program: invalid argument: R1 type=scalar")); got != "" {
		t.Errorf("advice %q on a program that is wrong", got)
	}
}
