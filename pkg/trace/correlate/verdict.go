package correlate

import (
	"time"

	"github.com/replypath/replypath/pkg/trace"
)

const (
	// verdictAge is how long around a drop netfilter's functions tell of it: they
	// are on their way back from it, and may be interrupted there.
	verdictAge = 10 * time.Millisecond
	// maxVerdicts bounds the verdicts that are kept for a drop that comes after them.
	maxVerdicts = 64
)

// verdict is what a function of netfilter said of a packet, known by its address
// alone: the packet may be freed by then.
type verdict struct {
	skb   uint64
	netns trace.Netns
	at    time.Time
	trace.Verdict
}

// verdicts joins the drops that netfilter may have caused with what its functions
// say of them. Which comes first depends on the kernel: until 6.3 a chain returned
// its verdict and the packet was dropped for it; since then the chain drops it.
type verdicts struct {
	told []verdict    // oldest first
	held []trace.Case // drops that wait for their verdict, oldest first
}

// mayBeNetfilter reports a drop that netfilter may have caused.
func mayBeNetfilter(ev *trace.Event) bool {
	switch ev.Reason {
	case "", "NOT_SPECIFIED", "NETFILTER_DROP", "NETFILTER_INGRESS":
		return ev.Hook == trace.HookDrop && ev.SKB != 0
	}
	return false
}

// hold keeps a case until its verdict can have been told.
func (v *verdicts) hold(c trace.Case) {
	for _, t := range v.told {
		t.join(&c)
	}
	v.held = append(v.held, c)
}

// add takes in a verdict.
func (v *verdicts) add(ev *trace.Event) {
	t := verdict{ev.SKB, ev.Netns, ev.Time, ev.Verdict}
	for i := range v.held {
		t.join(&v.held[i])
	}
	if len(v.told) >= maxVerdicts {
		v.told = v.told[1:]
	}
	v.told = append(v.told, t)
}

// join adds a verdict to the case that it is about. The most exact one stays.
func (t *verdict) join(c *trace.Case) {
	between := c.Event.Time.Sub(t.at).Abs()
	if t.skb == c.Event.SKB && t.netns == c.Event.Netns && between <= verdictAge && t.By > c.Verdict.By {
		c.Verdict = t.Verdict
	}
}

// release returns the cases that have waited long enough, and forgets old verdicts.
func (v *verdicts) release(now time.Time) []trace.Case {
	n := 0
	for n < len(v.told) && now.Sub(v.told[n].at) > verdictAge {
		n++
	}
	v.told = v.told[n:]
	n = 0
	for n < len(v.held) && now.Sub(v.held[n].Event.Time) > verdictAge {
		n++
	}
	cases := v.held[:n:n]
	v.held = v.held[n:]
	return cases
}

// flush returns all cases that wait.
func (v *verdicts) flush() []trace.Case {
	cases := v.held
	v.held = nil
	return cases
}
