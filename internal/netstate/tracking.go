package netstate

import (
	"bufio"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"github.com/replypath/replypath/pkg/trace"
)

// readTracking reads how full the table of connection tracking is. Each
// namespace counts its own entries; the limit is the same for all.
func (r *reading) readTracking(_ context.Context, state *trace.HostState) error {
	count, err := readSysctl("net/netfilter/nf_conntrack_count")
	if errors.Is(err, fs.ErrNotExist) {
		return nil // there is no connection tracking
	}
	limit, limitErr := readSysctl("net/netfilter/nf_conntrack_max")
	if err := errors.Join(err, limitErr); err != nil {
		return err
	}
	state.Tracking = trace.ConntrackState{Known: true, Count: count, Max: limit}
	file, err := os.Open("/proc/thread-self/net/stat/nf_conntrack")
	if err != nil {
		return nil // kernels can do without this file
	}
	defer file.Close()
	parseTrackingCounters(io.LimitReader(file, 1<<20), &state.Tracking)
	return nil
}

// parseTrackingCounters sums columns of all CPUs (ct_cpu_seq_show,
// net/netfilter/nf_conntrack_standalone.c); numbers are hexadecimal.
func parseTrackingCounters(in io.Reader, t *trace.ConntrackState) {
	counters := map[string]*uint64{"drop": &t.Drops, "invalid": &t.Invalid, "insert_failed": &t.InsertFailed, "clashres": &t.Clashes}
	var names []string
	for lines := bufio.NewScanner(in); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if names == nil {
			names = fields
			continue
		}
		for i, field := range fields[:min(len(fields), len(names))] {
			counter := counters[names[i]]
			if n, err := strconv.ParseUint(field, 16, 64); err == nil && counter != nil {
				*counter += n
			}
		}
	}
}
