package recorder

import (
	"testing"
	"time"

	"github.com/replypath/replypath/pkg/trace"
)

func exchange(n int, o trace.Outcome) *trace.Exchange {
	return &trace.Exchange{Number: uint64(n), Name: "www.test.", First: at(float64(n)), Last: at(float64(n)), Outcome: o, Response: make([]byte, 100)}
}

func TestExchanges(t *testing.T) {
	r, now := newRecorder(Config{MaxAge: time.Minute})
	for i, o := range []trace.Outcome{trace.Answered, trace.Unanswered, trace.Failed} {
		r.AddExchange(exchange(i, o))
	}
	late := exchange(1, trace.Late)
	late.Revised, late.Last = true, at(7)
	r.AddExchange(late)
	all := r.Exchanges(time.Time{})
	if len(all) != 3 || all[1] != late {
		t.Fatalf("%+v: want the late one in its first report's place", all)
	}
	if since := r.Exchanges(at(2)); len(since) != 2 || since[0] != late {
		t.Errorf("since: %+v", since)
	}
	if n := len(r.exchanges.revisable); n != 0 {
		t.Errorf("%d may still change", n)
	}
	now.now = at(61)
	if all := r.Exchanges(time.Time{}); len(all) != 2 {
		t.Errorf("%d left after a minute, want two", len(all))
	}
	now.now = at(600)
	if s := r.Stats(); len(r.Exchanges(time.Time{})) != 0 || s.ExchangesForgotten != 0 || r.exchanges.bytes != 0 {
		t.Errorf("%+v: what is too old is not lost", s)
	}
}

// A flood of queries takes three eighths where that is free, and no more than a quarter from others.
func TestExchangesBounded(t *testing.T) {
	const limit = 1 << 20
	r, _ := newRecorder(Config{MaxBytes: limit})
	for i := range 20_000 {
		r.AddExchange(exchange(i, trace.Unanswered))
	}
	s := r.Stats()
	if s.Bytes > limit*3/8 || s.Bytes < limit*3/10 || s.ExchangesForgotten+uint64(s.Exchanges) != 20_000 || len(r.exchanges.revisable) != s.Exchanges {
		t.Errorf("alone: %+v", s)
	}
	for i := range 10_000 {
		r.AddPath(path(i, at(0)))
		r.AddExchange(exchange(20_000+i, trace.Answered))
	}
	if s = r.Stats(); s.Bytes > limit || r.exchanges.bytes < limit/5 || r.pathBytes < limit/2 {
		t.Errorf("%d bytes of queries, %d of paths", r.exchanges.bytes, r.pathBytes)
	}
	if all := r.Exchanges(time.Time{}); all[len(all)-1].Number != 29_999 {
		t.Error("the latest was forgotten")
	}
}

// Who watches for findings is not told of queries, nor the other way round.
func TestExchangeFeed(t *testing.T) {
	r, _ := newRecorder(Config{})
	queries, findings := r.SubscribeExchanges(1), r.Subscribe(1)
	r.AddExchange(exchange(1, trace.Answered))
	r.AddPath(path(1, at(0)))
	r.AddExchange(exchange(2, trace.Answered))
	if u := <-queries.Updates(); u.Exchange == nil || u.Exchange.Number != 1 || u.Path != nil {
		t.Errorf("%+v", u)
	}
	if u := <-findings.Updates(); u.Path == nil || u.Exchange != nil || findings.Lost() != 0 {
		t.Errorf("%+v, %d lost", u, findings.Lost())
	}
	if queries.Lost() != 1 {
		t.Errorf("%d lost, want the one that did not fit", queries.Lost())
	}
	queries.Close()
	r.AddExchange(exchange(3, trace.Answered))
}
