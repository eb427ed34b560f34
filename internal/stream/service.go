package stream

import (
	"context"
	"errors"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	tracev1 "github.com/replypath/replypath/api/trace/v1"
	"github.com/replypath/replypath/internal/recorder"
	"github.com/replypath/replypath/pkg/trace"
	"github.com/replypath/replypath/pkg/trace/filter"
)

const (
	// watchBuffer is how many updates wait for a slow watcher.
	watchBuffer = 1024
	// maxTold is of how many findings a watch remembers what it told.
	maxTold = 4096
	// slowReader is the cause of losses within a watch.
	slowReader = "slow_reader"
)

// service implements tracev1.TracerServer over a Source.
type service struct {
	tracev1.UnimplementedTracerServer
	source   Source
	node     func() string   // its name
	stopping <-chan struct{} // closed when watches must end
}

// selection is what a client asks to see.
type selection struct {
	filter filter.Filter
	group  uint32               // process group; 0: any
	also   map[trace.Tuple]bool // what went with one of these anywhere is asked for too
}

// parseSelection returns an InvalidArgument error that says in one line what is wrong.
func parseSelection(expression string, group uint32) (selection, error) {
	f, err := filter.Parse(expression)
	if err != nil {
		return selection{}, status.Error(codes.InvalidArgument, err.Error())
	}
	return selection{filter: f, group: group}, nil
}

// path reports whether a path is asked for.
func (s *selection) path(p *trace.Path) bool {
	return (s.group == 0 || p.Process.PGID == s.group) && s.filter.Match(*p) || s.isAlso(filter.Tuples(nil, p))
}

// isAlso reports whether one of the tuples was named.
func (s *selection) isAlso(tuples []trace.Tuple) bool {
	return len(s.also) > 0 && slices.ContainsFunc(tuples, func(t trace.Tuple) bool { return s.also[t] })
}

// finding returns the finding as far as it is asked for.
func (s *selection) finding(r *recorder.Record, since time.Time) (trace.Finding, bool) {
	if s.group == 0 && s.filter.String() == "" {
		if f, ok := r.Restrict(since, nil); ok {
			return f, true
		}
		return r.Finding, true // its connections are not known, or no longer
	}
	return r.Restrict(since, func(tuples []trace.Tuple, client trace.Process) bool {
		return (s.group == 0 || client.PGID == s.group) && s.filter.MatchTuples(tuples) || s.isAlso(tuples)
	})
}

// Explain implements tracev1.TracerServer.
func (s *service) Explain(request *tracev1.ExplainRequest, answer grpc.ServerStreamingServer[tracev1.ExplainResponse]) error {
	selected, err := parseSelection(request.GetFilter(), request.GetProcessGroup())
	if err != nil {
		return err
	}
	since, err := sinceOf(request)
	if err != nil {
		return err
	}
	selected.addAlso(request.GetConnections())
	if err := s.source.Settle(answer.Context()); err != nil {
		return settleError(err)
	}
	summary := &tracev1.Summary{Nodes: 1}
	faulty := make(map[trace.Tuple]bool) // connections of the findings: whether their paths are yet to be counted
	records := s.source.Recorder().Records(since)
	for i := range records {
		f, ok := selected.finding(&records[i], since)
		if !ok {
			continue
		}
		summary.Findings++
		noteConnections(faulty, &f)
		if err := answer.Send(&tracev1.ExplainResponse{Result: &tracev1.ExplainResponse_Finding{Finding: s.finding(&f)}}); err != nil {
			return err
		}
	}
	paths := s.source.Recorder().Paths(since)
	for i := range paths {
		if !selected.path(&paths[i]) {
			continue
		}
		summary.Paths++
		_, fault := faulty[paths[i].Connection]
		if fault {
			faulty[paths[i].Connection] = false
		}
		if !request.GetAll() || fault && !request.GetFaulty() {
			continue
		}
		if err := answer.Send(&tracev1.ExplainResponse{Result: &tracev1.ExplainResponse_Path{Path: s.path(&paths[i])}}); err != nil {
			return err
		}
	}
	for _, uncounted := range faulty { // known by their findings only
		if uncounted {
			summary.Paths++
		}
	}
	conclude(summary, ofPaths(s.source.Losses(since)))
	return answer.Send(&tracev1.ExplainResponse{Result: &tracev1.ExplainResponse_Summary{Summary: summary}})
}

// finding and path are told with the node that they are of.
func (s *service) finding(f *trace.Finding) *tracev1.Finding {
	out := ProtoFinding(f)
	s.nameNode(out.GetPath())
	return out
}

func (s *service) path(p *trace.Path) *tracev1.Path {
	out := ProtoPath(p)
	s.nameNode(out)
	return out
}

func (s *service) nameNode(p *tracev1.Path) {
	node := s.node()
	for _, hops := range [][]*tracev1.Hop{p.GetRequest(), p.GetReply()} {
		for _, h := range hops {
			h.Node = node
		}
	}
}

// addAlso notes tuples of exchanges that are asked for besides.
func (s *selection) addAlso(connections []*tracev1.Connection) {
	s.also = make(map[trace.Tuple]bool, len(connections))
	for _, c := range connections {
		s.also[TraceTuple(c)] = true
	}
}

// noteConnections remembers the connections that an answer's finding shows.
func noteConnections(faulty map[trace.Tuple]bool, f *trace.Finding) {
	for _, c := range f.Connections {
		faulty[c.Tuple] = true
	}
	if f.Path.Connection.IsValid() {
		faulty[f.Path.Connection] = true
	}
}

// conclude sets the verdict. A fault that was found is one whatever was lost.
func conclude(summary *tracev1.Summary, losses []Loss) {
	var lost uint64
	for _, l := range losses {
		lost += l.Count
	}
	summary.LostEvents, summary.Losses = saturate(lost), protoLosses(losses)
	switch {
	case summary.Findings > 0:
		summary.Verdict = "fault"
	case lost > 0:
		summary.Verdict = "incomplete"
	default:
		summary.Verdict = "ok"
	}
}

// sinceOf returns the zero time when none is asked for.
func sinceOf(request asked) (time.Time, error) {
	if r, ok := request.(*tracev1.ExplainRequest); ok && r.GetAgo() != nil {
		ago := r.GetAgo()
		if err := ago.CheckValid(); err != nil {
			return time.Time{}, status.Errorf(codes.InvalidArgument, "ago: %v", err)
		}
		return time.Now().Add(-ago.AsDuration()), nil
	}
	since := request.GetSince()
	if since == nil {
		return time.Time{}, nil
	}
	if err := since.CheckValid(); err != nil {
		return time.Time{}, status.Errorf(codes.InvalidArgument, "since: %v", err)
	}
	return since.AsTime(), nil
}

// settleError keeps the client's own deadline apart from the agent's trouble.
func settleError(err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return status.FromContextError(err).Err()
	}
	return status.Errorf(codes.Unavailable, "settle open cases: %v", err)
}

// Watch implements tracev1.TracerServer. Its header is sent when the
// subscription stands: what happens after that is told.
func (s *service) Watch(request *tracev1.WatchRequest, answer grpc.ServerStreamingServer[tracev1.WatchResponse]) error {
	selected, err := parseSelection(request.GetFilter(), 0)
	if err != nil {
		return err
	}
	subscription := s.source.Recorder().Subscribe(watchBuffer)
	defer subscription.Close()
	if err := answer.SendHeader(metadata.MD{}); err != nil {
		return err
	}
	w := &watch{service: s, selection: selected, flows: request.GetFlows(), answer: answer, told: make(map[uint64]uint32)}
	for {
		select {
		case <-answer.Context().Done():
			return status.FromContextError(answer.Context().Err()).Err()
		case <-s.stopping:
			return status.Error(codes.Unavailable, "agent is stopping")
		case update, ok := <-subscription.Updates():
			if !ok {
				return status.Error(codes.Unavailable, "agent is stopping")
			}
			if err := w.tell(update, subscription.Lost()); err != nil {
				return err
			}
		}
	}
}

// watch is what one watcher asked for, and was told.
type watch struct {
	service *service
	selection
	flows  bool
	answer grpc.ServerStreamingServer[tracev1.WatchResponse]
	told   map[uint64]uint32 // count of each finding as told last
	lost   uint64            // updates lost as told last
}

// tell sends what the update has for this watcher, after the news of a loss.
func (w *watch) tell(update recorder.Update, lost uint64) error {
	if lost > w.lost {
		news := &tracev1.LostEvents{Count: saturate(lost - w.lost), Cause: slowReader}
		w.lost = lost
		if err := w.answer.Send(&tracev1.WatchResponse{Result: &tracev1.WatchResponse_LostEvents{LostEvents: news}}); err != nil {
			return err
		}
	}
	if path := update.Path; path != nil && w.flows && w.path(path) {
		return w.answer.Send(&tracev1.WatchResponse{Result: &tracev1.WatchResponse_Path{Path: w.service.path(path)}})
	}
	if update.Finding == nil {
		return nil
	}
	f, ok := w.finding(update.Finding, time.Time{})
	if !ok || !w.grew(update.Finding.Number, f.Count) {
		return nil
	}
	return w.answer.Send(&tracev1.WatchResponse{Result: &tracev1.WatchResponse_Finding{Finding: w.service.finding(&f)}})
}

// grew reports whether there is more of a finding than was told: it may have
// grown by connections that this watcher did not ask for.
func (w *watch) grew(number uint64, count uint32) bool {
	if told, ok := w.told[number]; ok && told == count {
		return false
	}
	if len(w.told) >= maxTold {
		clear(w.told)
	}
	w.told[number] = count
	return true
}

// Status implements tracev1.TracerServer.
func (s *service) Status(context.Context, *tracev1.StatusRequest) (*tracev1.StatusResponse, error) {
	node := protoNode(s.source.Status())
	node.Losses = protoLosses(s.source.Losses(time.Time{}))
	kept := s.source.Recorder().Stats()
	node.KeptPaths, node.KeptFindings = saturate(uint64(kept.Paths)), saturate(uint64(kept.Findings))
	return &tracev1.StatusResponse{Nodes: []*tracev1.Node{node}}, nil
}
