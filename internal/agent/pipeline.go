package agent

import (
	"context"
	"log/slog"
	"maps"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/replypath/replypath/internal/netstate"
	"github.com/replypath/replypath/internal/probe"
	"github.com/replypath/replypath/internal/recorder"
	"github.com/replypath/replypath/pkg/trace"
	"github.com/replypath/replypath/pkg/trace/correlate"
)

// Causes of loss behind the ring buffer.
const (
	lossPathTable = "path_table_full"
	lossCaseQueue = "case_queue_full"
	lossUnread    = "host_not_read"     // cases whose namespace could not be asked
	lossRecorder  = "recorder_full"     // findings forgotten before their time
	lossDNSKept   = "dns_recorder_full" // queries forgotten before their time
	lossDNSTable  = "dns_table_full"
	lossDNSStream = "dns_tcp_not_followed" // segments in which DNS messages may have begun
)

// pipeline is the one way that data flows: events from the probe are joined into
// paths; cases go to the investigator; what is done goes to the recorder.
type pipeline struct {
	probe        *probe.Probe
	places       *netstate.Directory
	table        *correlate.Table    // used by the reading goroutine alone
	dns          *correlate.DNSTable // the same
	queries      *dnsCounter
	recorder     *recorder.Recorder
	investigator *investigator
	log          *slog.Logger

	evicted   atomic.Uint64    // of the table, for other goroutines
	dnsLost   [2]atomic.Uint64 // of the DNS table: evicted, not followed
	livePaths atomic.Int64
	drops     dropCounter
	lost      lossTime

	mu      sync.Mutex
	settles []chan struct{} // who waits for what was seen to be handed out
	// limitCauses are the causes of loss by namespaces that told too much: there are few.
	limitCauses map[trace.Netns]string
}

func newPipeline(p *probe.Probe, places *netstate.Directory, r *recorder.Recorder, i *investigator, dnsNames int, log *slog.Logger) *pipeline {
	queries := correlate.NewDNS(correlate.DNSConfig{Place: places.PlaceThen, Exited: processWatch(), Deadline: dnsDeadline})
	return &pipeline{
		dns: queries, queries: newDNSCounter(dnsNames),
		probe: p, places: places, recorder: r, investigator: i, log: log,
		table: correlate.New(correlate.Config{Place: places.PlaceThen, Proxy: i.redirects.isProxy}),
	}
}

// isOwn reports a process that asks for routes as this one does: itself, or another replypath.
func isOwn(p trace.Process) bool {
	return p.PID == ownPID || strings.HasPrefix(p.Comm, "replypath")
}

var ownPID = uint32(os.Getpid())

// String names the task.
func (p *pipeline) String() string { return "pipeline" }

// readerNice is the priority of the thread that reads events: on a busy machine the ring is full
// before a thread like any other has its turn. It needs little.
const readerNice = -10

// Run reads events until ctx is done.
func (p *pipeline) Run(ctx context.Context) error {
	runtime.LockOSThread() // and never unlocks: the thread ends with the goroutine
	if err := unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), readerNice); err != nil {
		p.log.Debug("cannot read events before others have their turn", "err", err)
	}
	return p.probe.Run(ctx, p.add, p.idle)
}

func (p *pipeline) add(ev *trace.Event) {
	if ev.Hook == trace.HookAstray && isOwn(ev.Process) {
		return
	}
	if !ev.PayloadOnly { // the table of DNS asks by itself
		p.places.Place(ev.Netns) // learn its name while it is there
	}
	if ev.Hook == trace.HookDrop {
		p.drops.add(ev.Reason)
	}
	p.dns.Add(ev)
	if !ev.PayloadOnly {
		p.table.Add(ev)
	} else if !p.dns.HasNews() {
		return
	}
	p.handOut()
}

// idle is called when the ring is empty.
func (p *pipeline) idle() {
	p.noteLoss(time.Now())
	p.table.Advance(time.Now())
	p.dns.Advance(time.Now())
	p.mu.Lock()
	settles := p.settles
	p.settles = nil
	p.mu.Unlock()
	if len(settles) > 0 {
		p.table.Flush()
		p.dns.Flush()
	}
	p.handOut()
	for _, c := range p.investigator.redirects.overdue(time.Now(), len(settles) > 0) {
		p.investigator.submit(c)
	}
	for _, c := range p.investigator.redirects.release(time.Now(), false) {
		p.investigator.enqueue(c)
	}
	if len(settles) > 0 && p.dns.Settling(time.Now()) {
		p.mu.Lock()
		p.settles = append(p.settles, settles...) // what becomes of them is known in a moment
		p.mu.Unlock()
		return
	}
	for _, done := range settles {
		close(done)
	}
}

func (p *pipeline) handOut() {
	for _, c := range p.table.Cases() {
		p.dns.Annotate(&c)
		p.investigator.submit(c)
	}
	for _, c := range p.dns.Cases() {
		p.noteLoss(time.Now())
		c.Trouble.Lossy = p.lost.since(c.Trouble)
		p.investigator.submit(c)
	}
	for _, path := range p.table.Done() {
		p.recorder.AddPath(path)
		for _, c := range p.investigator.redirects.cases(&path) {
			p.investigator.submit(c)
		}
	}
	for _, x := range p.dns.Done() {
		p.queries.add(x)
		p.recorder.AddExchange(x)
	}
	lost := p.dns.Stats()
	p.dnsLost[0].Store(lost.Evicted)
	p.dnsLost[1].Store(lost.Unfollowed)
	p.evicted.Store(p.table.Evicted())
	p.livePaths.Store(int64(p.table.Len()))
}

// settle waits until everything that the kernel has told so far is in the
// recorder, and all cases that are open have been investigated.
func (p *pipeline) settle(ctx context.Context) {
	done := make(chan struct{})
	p.mu.Lock()
	p.settles = append(p.settles, done)
	p.mu.Unlock()
	if err := p.probe.Flush(); err != nil {
		return // it is closing
	}
	select {
	case <-done:
	case <-ctx.Done():
		return
	}
	p.investigator.wait(ctx)
}

// losses returns what was lost since start, by cause.
func (p *pipeline) losses() map[string]uint64 {
	losses, err := p.probe.Losses()
	if err != nil {
		p.log.Warn("cannot read loss counters", "err", err)
	}
	if losses[probe.LossLimit] > 0 {
		delete(losses, probe.LossLimit)
		maps.Copy(losses, p.limited())
	}
	losses[lossPathTable] = p.evicted.Load()
	losses[lossDNSTable], losses[lossDNSStream] = p.dnsLost[0].Load(), p.dnsLost[1].Load()
	losses[lossCaseQueue] = p.investigator.lost.Load()
	losses[lossUnread] = p.investigator.unread.Load()
	kept := p.recorder.Stats()
	losses[lossRecorder], losses[lossDNSKept] = kept.FindingsForgotten, kept.ExchangesForgotten
	return losses
}
