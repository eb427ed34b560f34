package netstate

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/replypath/replypath/pkg/trace"
)

// FilterFunc finds the netfilter rules or policies that drop a question's
// packet. It runs on a thread that is inside the namespace, and must not change
// that thread's namespace.
type FilterFunc func(q trace.Question, in, out trace.Interface) ([]trace.FilterVerdict, error)

// Limits of a Reader.
const (
	maxReads    = 8               // at once; each holds an OS thread
	readTimeout = 2 * time.Second // when the caller's context allows more
)

// Reader answers questions about network namespaces. It is safe for concurrent use.
type Reader struct {
	dir     *Directory
	filters FilterFunc
	slots   chan struct{}
	own     netns.NsHandle
	ownErr  error
	inode   trace.Netns
	close   sync.Once
}

// NewReader makes a reader of the namespaces that dir knows. filters may be nil.
func NewReader(dir *Directory, filters FilterFunc) *Reader {
	r := &Reader{dir: dir, filters: filters, slots: make(chan struct{}, maxReads)}
	r.own, r.inode, r.ownErr = openNamespace("/proc/thread-self/ns/net")
	return r
}

// Close waits for reads that are under way and frees the reader. Later reads fail.
func (r *Reader) Close() error {
	r.close.Do(func() {
		for range maxReads {
			r.slots <- struct{}{}
		}
		if r.ownErr == nil {
			r.ownErr = errClosed
			unix.Close(int(r.own))
		}
		for range maxReads {
			<-r.slots
		}
	})
	return nil
}

var errClosed = errors.New("reader is closed")

// Read asks the namespace of q.Place. What could not be read, or not before
// ctx ended, is named in Unread; the error says that nothing could be asked at
// all. Nothing is changed, and no packet is sent.
func (r *Reader) Read(ctx context.Context, q trace.Question) (trace.HostState, error) {
	if !q.Packet.IsValid() || q.Packet.Src.Addr().Is4() != q.Packet.Dst.Addr().Is4() {
		return trace.HostState{}, fmt.Errorf("read namespace %d: packet %s has no valid addresses", q.Place.Netns, q.Packet)
	}
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	select {
	case r.slots <- struct{}{}:
	case <-ctx.Done():
		cancel()
		return trace.HostState{}, fmt.Errorf("read namespace %d: %w", q.Place.Netns, ctx.Err())
	}
	reading, err := r.start(ctx, q, func() { cancel(); <-r.slots })
	if err != nil {
		return trace.HostState{}, fmt.Errorf("read namespace %d: %w", q.Place.Netns, err)
	}
	select {
	case <-reading.done:
	case <-ctx.Done():
		select { // it ends by itself soon; a kernel that holds it up longer does not hold up the caller
		case <-reading.done:
		case <-time.After(grace):
		}
	}
	return reading.result()
}

// grace is the time that a read has to notice that its context ended.
const grace = 20 * time.Millisecond

// start begins to read on a thread in the namespace; release is called when it has ended.
func (r *Reader) start(ctx context.Context, q trace.Question, release func()) (*reading, error) {
	if r.ownErr != nil {
		release()
		return nil, r.ownErr
	}
	target, err := r.open(q.Place)
	if err != nil {
		release()
		return nil, err
	}
	reading := newReading(q, r.filters)
	work := func() { reading.run(ctx) }
	ended := func(err error) {
		if err != nil {
			reading.fail(err)
		}
		target.Close()
		close(reading.done)
		release()
	}
	if q.Place.Netns == r.inode { // no privilege is needed to stay
		go func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			work()
			ended(nil)
		}()
		return reading, nil
	}
	enter(r.own, target, work, ended)
	return reading, nil
}

// open opens the question's namespace, by its process when the directory knows no way.
func (r *Reader) open(place trace.Place) (netns.NsHandle, error) {
	target, err := r.dir.Open(place.Netns)
	if err == nil || place.PID <= 0 {
		return target, err
	}
	if target, failure := openVerified(r.dir.sources.processPath(place.PID), place.Netns); failure == nil {
		return target, nil
	}
	return target, err
}

// reading is one question while it is being answered. Only its own goroutine
// writes; the state is guarded because the asker may leave earlier.
type reading struct {
	q       trace.Question
	filters FilterFunc
	family  uint8
	rtnl    *socket
	fib     *fib
	names   func(uint32) string

	links    map[uint32]link
	netconfs map[netconfKey]netconf
	owned    map[netip.Addr]bool
	in       uint32 // the device that IP saw the packet come in by
	vrf      link   // the VRF that this device is in; zero: none

	done  chan struct{}
	mu    sync.Mutex
	state trace.HostState
	left  []string // sections that are not answered yet
	err   error
}

func newReading(q trace.Question, filters FilterFunc) *reading {
	return &reading{
		q: q, filters: filters, family: familyOf(q.Packet.Dst.Addr()),
		links: make(map[uint32]link), netconfs: make(map[netconfKey]netconf), owned: make(map[netip.Addr]bool),
		done: make(chan struct{}), state: trace.HostState{ReadAt: time.Now()},
	}
}

// result is what is known by now.
func (r *reading) result() (trace.HostState, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	state := r.state
	state.Unread = slices.Clone(state.Unread)
	for _, name := range r.left {
		state.Unread = append(state.Unread, name+": no time left")
	}
	return state, r.err
}

func (r *reading) fail(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.err = err
}

// unread notes what could not be read.
func (r *reading) unread(name string, err error) {
	if err == nil {
		return
	}
	text := name + ": " + strings.ReplaceAll(err.Error(), "\n", "; ")
	r.mu.Lock()
	defer r.mu.Unlock()
	r.state.Unread = append(r.state.Unread, text)
}

// section reads one part of the answer and stores it.
type section struct {
	name string
	read func(ctx context.Context, state *trace.HostState) error
}

// run reads all sections, in the calling thread's namespace.
func (r *reading) run(ctx context.Context) {
	rtnl, err := dialSocket(unix.NETLINK_ROUTE, true)
	if err != nil {
		r.fail(err)
		return
	}
	defer rtnl.Close()
	r.attach(ctx, rtnl)
	r.findInput(ctx)

	sections := r.sections()
	r.mu.Lock()
	for _, s := range sections {
		r.left = append(r.left, s.name)
	}
	r.mu.Unlock()
	for _, s := range sections {
		if ctx.Err() != nil {
			return
		}
		r.mu.Lock()
		state := r.state
		r.mu.Unlock()
		err := s.read(ctx, &state)
		r.mu.Lock()
		state.Unread = r.state.Unread
		r.state = state
		r.left = r.left[1:]
		r.mu.Unlock()
		r.unread(s.name, err)
	}
}

// findInput finds the device that IP saw the packet come in by. One that is
// gone (a pod that ended) is noted, and the rest answered without it.
func (r *reading) findInput(ctx context.Context) {
	if r.q.In == 0 {
		return
	}
	if _, err := r.link(ctx, r.q.In); err != nil {
		r.unread("in device", err)
		r.state.In.Index = r.q.In // not shared yet
		return
	}
	r.in = r.layer3(ctx, r.belowVRF(ctx))
	r.vrf, _ = r.vrfOf(ctx, r.in)
}

// belowVRF returns the packet's in device or, where that is a VRF, the port of
// it that the packet came by: its settings decide (ip_rcv_finish asks with the
// device from before l3mdev_ip_rcv). Netfilter sees the VRF.
func (r *reading) belowVRF(ctx context.Context) uint32 {
	in, err := r.link(ctx, r.q.In)
	if err != nil || in.kind != "vrf" || r.q.Arrived == 0 || len(r.q.Filters) > 0 {
		return r.q.In
	}
	port, err := r.link(ctx, r.layer3(ctx, r.q.Arrived))
	if err != nil || port.master != in.index {
		return r.q.In
	}
	return port.index
}

// attach gives the reading its conversation with the kernel.
func (r *reading) attach(ctx context.Context, rtnl *socket) {
	r.rtnl = rtnl
	r.names = func(index uint32) string { return r.name(ctx, index) }
	r.fib = &fib{rtnl: rtnl, names: r.names, budget: maxRoutes, rules: make(map[uint8][]rule)}
	r.fib.vrf = func(index uint32) link { l, _ := r.vrfOf(ctx, index); return l }
}

// sections lists what a question needs, in the order in which later parts
// build on earlier ones.
func (r *reading) sections() []section {
	all := []section{
		{"devices", r.readDevices},
		{"forwarding", r.readForwarding},
		{"route", r.readOnward},
		{"route back", r.readBack},
		{"neighbour", r.readNextHop},
		{"previous hop", r.readPreviousHop},
		{"gateways", r.readGateways},
		{"owned address", r.readOwned},
	}
	if p := r.q.Packet.Protocol; p == trace.TCP || p == trace.UDP {
		all = append(all, section{"listeners", r.readListeners})
	}
	if r.q.Policy {
		all = append(all, section{"routing rules", r.readPolicy})
	}
	if len(r.q.Filters) > 0 && r.filters != nil {
		all = append(all, section{"filters", r.readFilters})
	}
	return append(all, r.extraSections()...)
}
