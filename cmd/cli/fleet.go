package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	tracev1 "github.com/replypath/replypath/api/trace/v1"
)

const (
	// maxNamed bounds the tuples by which agents are asked for the rest of exchanges.
	maxNamed = 20000
	// nobody is a process group that there cannot be (PID_MAX_LIMIT of include/linux/threads.h).
	nobody = math.MaxUint32
)

// fleet asks several agents at the same time and answers as one: exchanges are
// joined over the nodes that saw some of them.
type fleet struct {
	world   *world
	members []*connection

	mu     sync.Mutex
	silent []string // who did not answer; the user has been told
}

// connectAll connects to all agents that were named. One that is not there leaves the others.
func (s *server) connectAll(ctx context.Context) (*connection, error) {
	f := &fleet{world: s.world}
	for i, target := range s.targets {
		if slices.Contains(s.targets[:i], target) {
			continue
		}
		one := *s
		one.targets, one.target = []string{target}, target
		c, err := one.connectOne(ctx)
		var exit *exitError
		switch {
		case err == nil:
			f.members = append(f.members, c)
		case errors.As(err, &exit) && exit.code == exitUsage || ctx.Err() != nil:
			f.close()
			return nil, err
		default:
			f.missing(target, err)
		}
	}
	if len(f.members) == 0 {
		return nil, errNone
	}
	return &connection{TracerClient: f, server: fmt.Sprintf("%d addresses", len(s.targets)), stop: f.close}, nil
}

func (f *fleet) close() {
	for _, c := range f.members {
		c.close()
	}
}

// missing tells once that an agent does not answer.
func (f *fleet) missing(server string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !slices.Contains(f.silent, server) {
		f.silent = append(f.silent, server)
		f.world.note("%v (what it saw is missing from the answer)", err)
	}
}

// unanswered lists who did not answer.
func (f *fleet) unanswered() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Sorted(slices.Values(f.silent))
}

// errNone: the user has been told of each by itself.
var errNone = noAgentf("none of the agents answers")

// all asks each agent, all at the same time. The error is errNone, or the first
// that is the question's own fault.
func (f *fleet) all(ctx context.Context, ask func(int, *connection) error) error {
	errs := make([]error, len(f.members))
	var group sync.WaitGroup
	for i, c := range f.members {
		group.Go(func() { errs[i] = ask(i, c) })
	}
	group.Wait()
	answered := false
	for i, err := range errs {
		var exit *exitError
		switch {
		case err == nil:
			answered = true
		case errors.As(err, &exit) && exit.code == exitUsage, ctx.Err() != nil:
			return err
		default:
			f.missing(f.members[i].server, err)
		}
	}
	if !answered {
		return errNone
	}
	return nil
}

// Explain implements tracev1.TracerClient.
func (f *fleet) Explain(ctx context.Context, q *tracev1.ExplainRequest, _ ...grpc.CallOption) (grpc.ServerStreamingClient[tracev1.ExplainResponse], error) {
	r := round{fleet: f, asked: q, answers: make([]*answer, len(f.members))}
	if err := r.run(ctx); err != nil {
		return nil, err
	}
	return &recital{messages: r.joined()}, nil
}

// round is one question to all agents.
type round struct {
	fleet   *fleet
	asked   *tracev1.ExplainRequest
	answers []*answer // by member; nil: none
	seeds   named     // tuples of what was asked for by itself
}

// run asks, and then asks for the rest of what was found: on the other side of a
// NAT a filter does not match, and a process group is known on its own node only.
func (r *round) run(ctx context.Context) error {
	q := r.question()
	if q.GetProcessGroup() != 0 && !slices.ContainsFunc(r.fleet.members, func(c *connection) bool { return c.local }) {
		return usagef("a command runs on this machine: one of the agents has to be this machine's own (unix:///PATH)")
	}
	if err := r.ask(ctx, q); err != nil {
		return err
	}
	if q.GetFilter() == "" && q.GetProcessGroup() == 0 {
		return nil
	}
	r.seeds = r.named()
	for before, known := 0, r.seeds; len(known) > before; known = r.named() {
		before = len(known)
		q.Connections = known.messages()
		if before > maxNamed && q.GetProcessGroup() == 0 {
			q.Filter, q.Connections = "", nil // what does not belong here is left out when it is joined
		}
		if err := r.ask(ctx, q); err != nil {
			return err
		}
	}
	return nil
}

// question is what each agent is asked: for whole paths, by its own clock.
func (r *round) question() *tracev1.ExplainRequest {
	q := proto.CloneOf(r.asked)
	q.All, q.Faulty = true, true
	if since := q.GetSince(); since != nil && q.GetAgo() == nil {
		q.Since, q.Ago = nil, durationpb.New(max(time.Since(since.AsTime()), 0))
	}
	return q
}

func (r *round) ask(ctx context.Context, q *tracev1.ExplainRequest) error {
	return r.fleet.all(ctx, func(i int, c *connection) error {
		own := q
		if q.GetProcessGroup() != 0 && !c.local {
			own = proto.CloneOf(q)
			own.ProcessGroup = nobody
		}
		a, err := c.ask(ctx, own)
		if err == nil {
			r.answers[i] = a
		}
		return err
	})
}

// recital is an answer that is known already, as a stream.
type recital struct {
	grpc.ClientStream // nil: nothing but Recv is called
	messages          []*tracev1.ExplainResponse
}

// Recv implements grpc.ServerStreamingClient.
func (r *recital) Recv() (*tracev1.ExplainResponse, error) {
	if len(r.messages) == 0 {
		return nil, io.EOF
	}
	m := r.messages[0]
	r.messages = r.messages[1:]
	return m, nil
}

// Status implements tracev1.TracerClient. When an agent started is told by this machine's clock.
func (f *fleet) Status(ctx context.Context, q *tracev1.StatusRequest, _ ...grpc.CallOption) (*tracev1.StatusResponse, error) {
	told := make([]*tracev1.StatusResponse, len(f.members))
	err := f.all(ctx, func(i int, c *connection) error {
		s, err := c.Status(ctx, q)
		if err != nil {
			return c.failure(err)
		}
		told[i] = s
		for _, n := range s.GetNodes() {
			if n.GetTime() != nil && n.GetStarted() != nil {
				n.Started = timestamppb.New(n.GetStarted().AsTime().Add(time.Since(n.GetTime().AsTime())))
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	whole := new(tracev1.StatusResponse)
	for _, s := range told {
		whole.Nodes = append(whole.Nodes, s.GetNodes()...)
	}
	return whole, nil
}

// Queries implements tracev1.TracerClient. Queries are not joined over nodes.
func (f *fleet) Queries(context.Context, *tracev1.DnsRequest, ...grpc.CallOption) (grpc.ServerStreamingClient[tracev1.DnsResponse], error) {
	return nil, usagef("dns asks one agent: name one server")
}
