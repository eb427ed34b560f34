package correlate

import (
	"net/netip"
	"time"

	"github.com/replypath/replypath/pkg/trace"
)

// A connect() names its process before its SYN leaves and before it has a local
// port; the SYN follows at once, unless it waits for a neighbour.
const (
	connectAge  = 5 * time.Second
	maxConnects = 4096
)

// connects are the recent calls of connect(), oldest first.
type connects struct {
	calls []connect
}

type connect struct {
	netns   trace.Netns
	server  netip.AddrPort
	process trace.Process
	at      time.Time
}

func (c *connects) add(ev *trace.Event) {
	if ev.Process.PID == 0 {
		return
	}
	if len(c.calls) >= maxConnects {
		c.calls = append(c.calls[:0], c.calls[maxConnects/2:]...)
	}
	c.calls = append(c.calls, connect{ev.Netns, ev.Tuple.Dst, ev.Process, ev.Time})
}

func (c *connects) expire(now time.Time) {
	n := 0
	for n < len(c.calls) && now.Sub(c.calls[n].at) >= connectAge {
		n++
	}
	c.calls = c.calls[n:]
	if len(c.calls) == 0 {
		c.calls = nil
	}
}

// find returns the process that connected to server, and forgets the call.
// Where several did at once, `current` (the task that the SYN left under) must
// be one of them; otherwise nobody is named.
func (c *connects) find(ns trace.Netns, server netip.AddrPort, current trace.Process) trace.Process {
	found, ambiguous := -1, false
	for i := len(c.calls) - 1; i >= 0; i-- {
		call := &c.calls[i]
		if call.netns != ns || call.server != server {
			continue
		}
		if call.process.PID == current.PID {
			found, ambiguous = i, false
			break
		}
		ambiguous = ambiguous || found >= 0 && c.calls[found].process.PID != call.process.PID
		if found < 0 {
			found = i
		}
	}
	if found < 0 || ambiguous {
		return trace.Process{}
	}
	process := c.calls[found].process
	c.calls = append(c.calls[:found], c.calls[found+1:]...)
	return process
}
