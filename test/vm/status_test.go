//go:build vm

package vm

import (
	"os"
	"slices"
	"strings"
	"testing"
)

// essential are hooks without which nothing is explained.
var essential = []string{"skb:kfree_skb", "net:netif_receive_skb", "net:net_dev_queue"}

// What the agent says is looked at where it is started.
func TestStatus(t *testing.T) {
	t.Parallel()
	checkStatus(t, statusOf(t, "--tier", "base"), "base")
}

// checkStatus demands that a status tells of this kernel, and that its hooks are as they should be; a kernel may
// have the base tier only.
func checkStatus(t *testing.T, n node, tier string) {
	t.Helper()
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil || n.Kernel != strings.TrimSpace(string(release)) {
		t.Errorf("kernel %q, want %q (%v)", n.Kernel, release, err)
	}
	if n.Tier != "base" && n.Tier != tier {
		t.Errorf("tier %q", n.Tier)
	}
	for _, h := range n.Hooks {
		checkHook(t, h, n.Tier)
	}
	for _, name := range essential {
		if h, ok := n.named(name); !ok || h.State != "attached" {
			t.Errorf("hook %s: %+v, want it attached", name, h)
		}
	}
}

// checkHook demands that a hook's state and the reason for it fit together.
// These kernels refuse no tracepoint to root, as long as they are not locked down.
func checkHook(t *testing.T, h hook, tier string) {
	t.Helper()
	if !slices.Contains([]string{"attached", "refused", "absent", "paused"}, h.State) {
		t.Errorf("hook %s is %q", h.Name, h.State)
	}
	if h.State == "refused" && !strings.HasPrefix(h.Name, "netfilter:") {
		t.Errorf("hook %s is refused: %s", h.Name, h.Reason)
	}
	if attached := h.State == "attached"; attached != (h.Means != "") {
		t.Errorf("hook %s is %s, by means of %q", h.Name, h.State, h.Means)
	}
	if h.State != "attached" && h.Reason == "" {
		t.Errorf("hook %s is %s without a reason", h.Name, h.State)
	}
	if strings.ContainsAny(h.Reason, "\n\r") {
		t.Errorf("the reason for hook %s is not one line: %q", h.Name, h.Reason)
	}
	if tier == "base" && h.State == "attached" && (h.Means == "fexit" || h.Means == "kprobe") {
		t.Errorf("hook %s is attached by %s in the base tier", h.Name, h.Means)
	}
}
