package main

import (
	"cmp"
	"context"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/timestamppb"

	tracev1 "github.com/replypath/replypath/api/trace/v1"
	"github.com/replypath/replypath/internal/stream"
	"github.com/replypath/replypath/pkg/trace"
	"github.com/replypath/replypath/pkg/trace/filter"
)

const (
	// newsQuiet is how long news from several agents wait for what belongs to them,
	// and newsLimit how long while more keep coming.
	newsQuiet = time.Second
	newsLimit = 3 * time.Second
	// newsReach is how far before the last news the agents are asked for what they know.
	newsReach = 30 * time.Second
)

// Watch implements tracev1.TracerClient. What one agent tells as it comes is news
// that makes all be asked: the answer is joined, as Explain's is.
func (f *fleet) Watch(ctx context.Context, q *tracev1.WatchRequest, _ ...grpc.CallOption) (grpc.ServerStreamingClient[tracev1.WatchResponse], error) {
	// On the other side of a NAT the filter does not match: it is for the joined answer.
	questions := []*tracev1.WatchRequest{{}}
	if q.GetFlows() {
		questions = append(questions, &tracev1.WatchRequest{Filter: q.GetFilter(), Flows: true})
	}
	streams := make([][]grpc.ServerStreamingClient[tracev1.WatchResponse], len(f.members))
	err := f.all(ctx, func(i int, c *connection) error {
		for _, question := range questions {
			s, err := c.Watch(ctx, question)
			if err == nil {
				_, err = s.Header()
			}
			if err != nil {
				streams[i] = nil
				return c.failure(err)
			}
			streams[i] = append(streams[i], s)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	n := &news{fleet: f, asked: q, from: time.Now(), told: make(chan *tracev1.WatchResponse), ended: make(chan error, 1), flows: make(map[exchange]time.Time)}
	heard := make(chan *tracev1.WatchResponse)
	over := make(chan error, 1)
	go func() { over <- f.mingle(ctx, streams, heard) }()
	go func() { n.ended <- n.gather(ctx, heard, over) }()
	return n, nil
}

// mingle passes on what the streams tell, until all have ended.
func (f *fleet) mingle(ctx context.Context, streams [][]grpc.ServerStreamingClient[tracev1.WatchResponse], heard chan<- *tracev1.WatchResponse) error {
	var group sync.WaitGroup
	errs := make([]error, len(streams))
	for i, list := range streams {
		for n, s := range list {
			group.Go(func() {
				err := passOn(ctx, s, heard)
				if n == 0 {
					errs[i] = err
				}
				if ctx.Err() == nil {
					f.missing(f.members[i].server, f.members[i].gone(err))
				}
			})
		}
	}
	group.Wait()
	return cmp.Or(errs...)
}

// passOn passes on what one stream tells, until it ends.
func passOn(ctx context.Context, s grpc.ServerStreamingClient[tracev1.WatchResponse], heard chan<- *tracev1.WatchResponse) error {
	for {
		m, err := s.Recv()
		if err != nil {
			return err
		}
		select {
		case heard <- m:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// news is several live streams in one.
type news struct {
	grpc.ClientStream // nil: nothing but Recv and Header are called
	fleet             *fleet
	asked             *tracev1.WatchRequest
	from              time.Time // nothing before that is told
	told              chan *tracev1.WatchResponse
	ended             chan error
	flows             map[exchange]time.Time // those that were told
}

// exchange tells a flow from others over the same addresses.
type exchange struct {
	connection trace.Tuple
	answered   bool
	first      int64
}

// batch is what was heard since the agents were asked last.
type batch struct {
	since, last time.Time // of the first and the last news; zero: none
	flows       named
}

// gather asks the agents when there was news and it has become quiet.
func (n *news) gather(ctx context.Context, heard <-chan *tracev1.WatchResponse, over <-chan error) error {
	b := batch{flows: make(named)}
	var asking chan []*tracev1.WatchResponse // nil while nobody is asked
	for {
		var quiet <-chan time.Time
		if asking == nil && !b.since.IsZero() {
			quiet = time.After(time.Until(earlier(b.last.Add(newsQuiet), b.since.Add(newsLimit))))
		}
		select {
		case m := <-heard:
			if m.GetLostEvents() != nil {
				if err := n.tell(ctx, m); err != nil {
					return err
				}
				continue
			}
			b.add(m)
		case <-quiet:
			asking = make(chan []*tracev1.WatchResponse, 1)
			go func(b batch) { asking <- n.ask(ctx, &b) }(b)
			b = batch{flows: make(named)}
		case answer := <-asking:
			asking = nil
			if err := n.tell(ctx, answer...); err != nil {
				return err
			}
		case err := <-over:
			return err
		}
	}
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// add notes that something was heard, and of which flows.
func (b *batch) add(m *tracev1.WatchResponse) {
	b.last = time.Now()
	if b.since.IsZero() {
		b.since = b.last
	}
	if p := m.GetPath(); p != nil && len(b.flows) < maxNamed {
		path := stream.TracePath(p)
		b.flows.add(&path)
	}
}

func (n *news) tell(ctx context.Context, list ...*tracev1.WatchResponse) error {
	for _, m := range list {
		select {
		case n.told <- m:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// ask returns what the agents know together of what was heard.
func (n *news) ask(ctx context.Context, b *batch) []*tracev1.WatchResponse {
	since := b.since.Add(-newsReach)
	if since.Before(n.from) {
		since = n.from
	}
	r := round{fleet: n.fleet, answers: make([]*answer, len(n.fleet.members)), asked: &tracev1.ExplainRequest{
		Filter: n.asked.GetFilter(), Since: timestamppb.New(since), All: n.asked.GetFlows(),
	}}
	if err := r.run(ctx); err != nil {
		return nil // who does not answer was told of; when nobody is left, the streams end, too
	}
	var list []*tracev1.WatchResponse
	for _, m := range r.joined() {
		switch result := m.GetResult().(type) {
		case *tracev1.ExplainResponse_Finding:
			list = append(list, &tracev1.WatchResponse{Result: &tracev1.WatchResponse_Finding{Finding: result.Finding}})
		case *tracev1.ExplainResponse_Path:
			if p := stream.TracePath(result.Path); n.isNew(&p, b) {
				list = append(list, &tracev1.WatchResponse{Result: &tracev1.WatchResponse_Path{Path: result.Path}})
			}
		}
	}
	return list
}

// isNew reports whether a flow was heard of, and not told as it is now.
func (n *news) isNew(p *trace.Path, b *batch) bool {
	if !b.flows.hasAny(filter.Tuples(nil, p)) {
		return false
	}
	now := time.Now()
	for e, at := range n.flows {
		if now.Sub(at) > 2*newsReach {
			delete(n.flows, e)
		}
	}
	e := exchange{p.Connection, p.Answered, p.First.UnixNano()}
	_, told := n.flows[e]
	n.flows[e] = now
	return !told
}

// Header implements grpc.ClientStream: all streams stand.
func (n *news) Header() (metadata.MD, error) { return nil, nil }

// Recv implements grpc.ServerStreamingClient.
func (n *news) Recv() (*tracev1.WatchResponse, error) {
	select {
	case m := <-n.told:
		return m, nil
	case err := <-n.ended:
		n.ended <- err
		return nil, err
	}
}
