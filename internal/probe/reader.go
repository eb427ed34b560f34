package probe

import (
	"context"
	"errors"
	"os"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf/ringbuf"

	"github.com/replypath/replypath/pkg/trace"
)

// The programs never wake the reader for one event, so it polls: soon again
// while events come, more rarely when none do.
const (
	pollBusy = 2 * time.Millisecond
	pollIdle = 50 * time.Millisecond
)

// Run reads events and hands each to handle, until ctx is done; idle is called
// whenever the ring is empty. The event is only valid during the call.
func (p *Probe) Run(ctx context.Context, handle func(*trace.Event), idle func()) error {
	stop := context.AfterFunc(ctx, func() { p.reader.Close() })
	defer stop()
	var (
		rec  ringbuf.Record
		ev   trace.Event
		wait = pollBusy
	)
	p.reader.SetDeadline(time.Now().Add(wait))
	for {
		switch err := p.reader.ReadInto(&rec); {
		case err == nil:
			wait = pollBusy
			p.decodeInto(rec.RawSample, &ev, handle)
		case errors.Is(err, os.ErrDeadlineExceeded):
			idle()
			p.reader.SetDeadline(time.Now().Add(wait))
			wait = min(wait*2, pollIdle)
		case errors.Is(err, ringbuf.ErrFlushed):
			// Flush: somebody waits for what is in the ring.
			idle()
		case ctx.Err() != nil:
			return nil
		default:
			return err
		}
	}
}

func (p *Probe) decodeInto(raw []byte, ev *trace.Event, handle func(*trace.Event)) {
	if err := p.decoder.decode(raw, ev); err != nil {
		p.undecoded.Add(1)
		return
	}
	p.events.Add(1)
	if ev.Hook == trace.HookDrop && ev.Reason == "" && ev.Symbol == "" {
		p.unlocated.Add(1)
	}
	if int(ev.Hook) < len(p.byHook) {
		p.byHook[ev.Hook].Add(1)
	}
	handle(ev)
}

// Flush makes Run deliver what is in the ring now.
func (p *Probe) Flush() error { return p.reader.Flush() }

// counters of what Run read.
type counters struct {
	events    atomic.Uint64
	undecoded atomic.Uint64
	unlocated atomic.Uint64
	byHook    [trace.HookCount]atomic.Uint64
}

// Events returns how many events were read so far.
func (p *Probe) Events() uint64 { return p.events.Load() }

// EventsByHook returns how many events each hook gave so far.
func (p *Probe) EventsByHook() map[trace.Hook]uint64 {
	by := make(map[trace.Hook]uint64)
	for h := range p.byHook {
		if n := p.byHook[h].Load(); n != 0 {
			by[trace.Hook(h)] = n
		}
	}
	return by
}

// LossCauses names the causes of loss, in the order of enum loss in bpf/event.h.
var LossCauses = [...]string{
	dropLossLOSS_RING_FULL:  "ring_buffer_full",
	dropLossLOSS_NOT_LINEAR: "header_not_linear",
	dropLossLOSS_UDP_RATE:   "udp_flow_not_traced",
	dropLossLOSS_DNS_PAGED:  "dns_message_not_readable",
	dropLossLOSS_LIMIT:      LossLimit,
}

// LossLimit is the cause of events that were not told because their namespace told too many.
const LossLimit = "namespace_limit"

// LossUndecoded is the cause of records that user space could not decode.
const LossUndecoded = "record_not_decoded"

// LossUnlocated is the cause of drops of which nothing can be told: the kernel gives
// no drop reasons, and hides what its functions are called (kernel.kptr_restrict).
const LossUnlocated = "drop_not_located"

// Losses returns how many events were lost so far, by cause.
func (p *Probe) Losses() (map[string]uint64, error) {
	losses := map[string]uint64{LossUndecoded: p.undecoded.Load(), LossUnlocated: p.unlocated.Load()}
	for i, cause := range LossCauses {
		n, err := p.loss(dropLoss(i))
		if err != nil {
			return losses, err
		}
		losses[cause] = n
	}
	return losses, nil
}

// loss returns what one counter of the kernel's says.
func (p *Probe) loss(cause dropLoss) (total uint64, err error) {
	var perCPU []uint64
	if err := p.maps[dropMapLosses].Lookup(uint32(cause), &perCPU); err != nil {
		return 0, err
	}
	for _, n := range perCPU {
		total += n
	}
	return total, nil
}
