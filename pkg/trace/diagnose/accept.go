package diagnose

import (
	"fmt"

	"github.com/replypath/replypath/pkg/trace"
)

var acceptQueueFull = Rule{
	ID:       "accept-queue-full",
	Title:    "the listener does not accept: its queue is full",
	Severity: trace.Error,
	Doc: "The request was delivered, a socket listens, there is a way back to the client, and nothing left within 200 ms: the kernel drops SYNs without a word while more connections wait for accept() " +
		"than the listener's backlog (TcpExt:ListenOverflows counts them). Recognised by the silence and the listener's queue at that time.",
	explain: explainAcceptQueue,
}

func explainAcceptQueue(c *trace.Case, s *trace.HostState) *explanation {
	if c.Symptom != trace.SymptomSilence || !s.DstLocal || s.Back.Done && !s.Back.Found() {
		return nil
	}
	var full *trace.Listener
	open := 0
	for i := range s.Listeners {
		switch l := &s.Listeners[i]; {
		case !l.Matches:
		case l.Queue > l.Backlog: // sk_acceptq_is_full, include/net/sock.h
			full = l
		default:
			open++
		}
	}
	if full == nil {
		return nil
	}
	here, dst := name(c.Place), c.Event.Tuple.Dst
	e := &explanation{
		confidence: trace.Certain,
		direction:  trace.Request,
		device:     c.Arrival.Device.Name,
		summary:    fmt.Sprintf("the server on %s in %s does not accept connections: its queue is full", full.Addr, here),
		cause: fmt.Sprintf("The request for %s reached %s, but %d connections wait for the server on %s to accept them, and its backlog is %d: the kernel drops further ones without a word.",
			dst, here, full.Queue, full.Addr, full.Backlog),
		fix: []string{fmt.Sprintf("# find out why the server on %s in %s does not call accept (stopped, deadlocked, overloaded), or restart it", full.Addr, here),
			"# " + at(c.Place, "sysctl -w net.core.somaxconn=4096") + "   # only if it accepts, but in bursts: and let it listen with a larger backlog"},
		verify:   []string{at(c.Place, "ss -Hltn 'sport = :%d'", full.Addr.Port()) + "   # Recv-Q must stay below Send-Q"},
		fault:    full.Addr.String(),
		evidence: []trace.Evidence{state(s, "socket %s: %d connections wait for accept, backlog %d", full.Addr, full.Queue, full.Backlog)},
	}
	if open > 0 {
		e.confidence = trace.Likely // the kernel chose one of several sockets
	}
	return e
}
