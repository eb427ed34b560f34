package diagnose

import (
	"fmt"

	"github.com/replypath/replypath/pkg/trace"
)

// isQueueDrop reports a packet that a rule handed to a program, and that came to
// nothing there: nobody takes packets from that queue, it is full, or the program
// said so (net/netfilter/nf_queue.c, nfnetlink_queue.c). The kernel gives no reason.
func isQueueDrop(ev *trace.Event) bool {
	return hasPrefix(ev.Symbol, "nf_queue", "__nf_queue", "nf_reinject", "nfqnl_")
}

// explainQueue explains the drop of a packet that a rule handed to a program.
func explainQueue(e *explanation, c *trace.Case, v *trace.FilterVerdict) {
	ev := &c.Event
	what := fmt.Sprintf("the %s %s -> %s", packetName(ev), ev.Tuple.Src, ev.Tuple.Dst)
	here := name(c.Place)
	if hasPrefix(ev.Symbol, "nf_queue", "__nf_queue") {
		e.summary = fmt.Sprintf("%s queues the %s for a program, and none takes it, in %s", showShort(v), packetName(ev), here)
		e.cause = fmt.Sprintf("%s hands %s to a program by a netfilter queue at hook %s in %s, but no program takes packets from that queue, or it is full; the rule does not let them pass then (bypass).",
			capital(showVerdict(v)), what, v.Hook, here)
		e.fix = append([]string{"# start the program that serves the queue, or let the rule say bypass"}, e.fix...)
	} else {
		e.summary = fmt.Sprintf("the program behind %s dropped the %s in %s", showShort(v), packetName(ev), here)
		e.cause = fmt.Sprintf("%s hands %s to a program by a netfilter queue at hook %s in %s, and that program dropped it.", capital(showVerdict(v)), what, v.Hook, here)
	}
	e.verify = []string{verifyFilter(c, []trace.FilterVerdict{*v}), at(c.Place, "cat /proc/net/netfilter/nfnetlink_queue")}
}
