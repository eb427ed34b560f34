package netfilter

import (
	"encoding/binary"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/replypath/replypath/pkg/trace"
)

// queuesOf reads the queues of nftables' statement.
func queuesOf(a *attributeValues) queues {
	const bypass = 1 // NFT_QUEUE_FLAG_BYPASS
	var q queues
	if v := a[unix.NFTA_QUEUE_NUM]; len(v) == 2 {
		q.first = binary.BigEndian.Uint16(v)
	}
	q.last = q.first
	if v := a[unix.NFTA_QUEUE_TOTAL]; len(v) == 2 {
		q.last += max(binary.BigEndian.Uint16(v), 1) - 1
	}
	if v := a[unix.NFTA_QUEUE_FLAGS]; len(v) == 2 {
		q.bypass = binary.BigEndian.Uint16(v)&bypass != 0
	}
	return q
}

// decodeQueues reads the target NFQUEUE (struct xt_NFQ_info and its later revisions).
func decodeQueues(r *reader, revision uint8) queues {
	q := queues{first: r.u16()}
	q.last = q.first
	if revision >= 1 {
		q.last += max(r.u16(), 1) - 1
	}
	if revision >= 2 {
		q.bypass = r.u16()&1 != 0
	}
	return q
}

// Served reports whether programs take packets from all the queues of a verdict,
// in the calling thread's namespace. Not known: it cannot be read.
func Served(v *trace.FilterVerdict) (served, known bool) {
	b, err := os.ReadFile("/proc/thread-self/net/netfilter/nfnetlink_queue")
	if err != nil {
		return false, os.IsNotExist(err) // without the module nobody can
	}
	var open []int
	for line := range strings.Lines(string(b)) {
		if fields := strings.Fields(line); len(fields) > 0 {
			if n, err := strconv.Atoi(fields[0]); err == nil {
				open = append(open, n)
			}
		}
	}
	for n := int(v.Queues[0]); n <= int(v.Queues[1]); n++ {
		if !slices.Contains(open, n) {
			return false, true
		}
	}
	return true, true
}
