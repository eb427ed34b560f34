package diagnose

import (
	"fmt"

	"github.com/replypath/replypath/pkg/trace"
)

var socketBufferFull = Rule{
	ID:       "socket-buffer-full",
	Title:    "the receiver's socket buffer overflowed",
	Severity: trace.Error,
	Doc: "The packet reached its socket, whose receive buffer was full, because the process does not read fast enough, or not at all (reason SOCKET_RCVBUFF; for TCP also SOCKET_BACKLOG and PROTO_MEM; " +
		"before 5.17 the function that queues for a UDP socket, and the socket's own counter of drops). TCP closes its window before that, so there it is rare. The socket, its buffer and its process are named.",
	explain: explainSocketBuffer,
}

// isBufferDrop reports a packet that its socket had no room for.
func isBufferDrop(ev *trace.Event) bool {
	switch ev.Reason {
	case "SOCKET_RCVBUFF", "SOCKET_BACKLOG", "PROTO_MEM":
		return true
	case "", "NOT_SPECIFIED":
		return hasPrefix(ev.Symbol, "udp_queue_rcv", "udpv6_queue_rcv", "__udp_enqueue_schedule_skb")
	}
	return false
}

// overflowed is the socket that the packet found full: the one that has dropped most, or is fullest.
func overflowed(s *trace.HostState) (trace.Socket, bool) {
	var worst trace.Socket
	found := false
	for _, k := range s.Sockets {
		if !found || k.Drops > worst.Drops || k.Drops == worst.Drops && k.Used > worst.Used {
			worst, found = k, true
		}
	}
	return worst, found
}

// waitsInFull reports a DNS query that waits in its resolver's socket, in front of those for which that had no room any more.
func waitsInFull(c *trace.Case, s *trace.HostState) bool {
	if c.Symptom != trace.SymptomUnanswered || c.Direction != trace.Reply || c.Trouble.Root().Stage != trace.StageReceived {
		return false
	}
	_, socket := receiver(s)
	return socket != nil && socket.Drops > 0 && 2*socket.Used >= socket.Buffer
}

func explainSocketBuffer(c *trace.Case, s *trace.HostState) *explanation {
	ev := &c.Event
	socket, ok := overflowed(s)
	waits := waitsInFull(c, s)
	if !waits && (c.Symptom != trace.SymptomDrop || !isBufferDrop(ev) || ev.Carried.Known()) {
		return nil
	}
	told := ev.Reason != "" && ev.Reason != "NOT_SPECIFIED"
	if !told && !waits && (!ok || socket.Drops == 0) {
		return nil // a checksum, or a filter of the socket
	}
	here, to := name(c.Place), ev.Tuple.Dst
	e := &explanation{
		confidence: trace.Certain, device: c.Arrival.Device.Name, fault: fmt.Sprintf("buffer of %s %s", ev.Tuple.Protocol, to),
		summary: fmt.Sprintf("the receive buffer of %s %s in %s is full", ev.Tuple.Protocol, to, here),
		cause:   fmt.Sprintf("The %s %s -> %s reached its socket in %s, and the socket's receive buffer had no room for it.", packetName(ev), ev.Tuple.Src, to, here),
		verify:  []string{at(c.Place, "ss -H%s 'sport = :%d'", ssFlags(ev.Tuple.Protocol), to.Port()) + "   # skmem: r (used) must stay below rb (size), d (drops) must not grow"},
	}
	switch {
	case waits:
		e.direction, e.device = trace.Request, ev.Device.Name
		e.cause = fmt.Sprintf("%s It reached its socket in %s and waits there unread; the socket's receive buffer has run full since.", askedFor(c.Trouble), here)
		e.evidence = queryEvidence(c.Trouble)
	case !told || !ok:
		e.confidence = trace.Likely
	}
	owner := "its program"
	if ok {
		if p := socket.Process; p.PID != 0 {
			owner = fmt.Sprintf("%s (pid %d)", printable(p.Comm), p.PID)
		}
		e.cause += fmt.Sprintf(" Of its %d bytes %d are in use, and it has dropped %d packets: %s does not read fast enough.", socket.Buffer, socket.Used, socket.Drops, owner)
		e.evidence = append(e.evidence, state(s, "socket %s of %s: receive buffer %d of %d bytes, %d drops", socket.Local, owner, socket.Used, socket.Buffer, socket.Drops))
	}
	e.fix = growBuffer(c, socket, owner)
	return e
}

// growBuffer is how a socket of the packet's protocol gets more room; new sockets only.
func growBuffer(c *trace.Case, socket trace.Socket, owner string) []string {
	wanted := max(4*socket.Buffer, 4<<20)
	first := fmt.Sprintf("# let %s read faster or with more threads, or ask for a larger buffer (SO_RCVBUF)", owner)
	if c.Event.Tuple.Protocol == trace.TCP {
		return []string{first, at(c.Place, "sysctl -w net.ipv4.tcp_rmem='4096 131072 %d'", wanted) + "   # for new connections that do not set SO_RCVBUF"}
	}
	// These two are the host's own, whichever namespace the socket is in.
	return []string{first, fmt.Sprintf("sysctl -w net.core.rmem_max=%d net.core.rmem_default=%d   # on the host; then restart %s", wanted, wanted, owner)}
}

// ssFlags are the flags with which ss(8) shows sockets of a protocol with their memory.
func ssFlags(p trace.Protocol) string {
	if p == trace.UDP {
		return "uanmp"
	}
	return "tanmp"
}
