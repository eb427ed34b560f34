package diagnose

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/replypath/replypath/pkg/trace"
)

func TestExplainSocketBuffer(t *testing.T) {
	datagram := func(reason, symbol string) trace.Case {
		c := dropped(vip4, reason, symbol)
		c.Event.Tuple.Protocol, c.Event.Flags = trace.UDP, 0
		return c
	}
	socket := trace.Socket{Protocol: trace.UDP, Local: netip.MustParseAddrPort("0.0.0.0:80"), Used: 4000, Buffer: 4096, Drops: 7, Process: trace.Process{PID: 12, Comm: "slowd"}}
	idle := trace.Socket{Protocol: trace.UDP, Local: netip.MustParseAddrPort("0.0.0.0:80"), Buffer: 4096}
	tests := map[string]struct {
		c    trace.Case
		s    trace.HostState
		id   string
		conf trace.Confidence
		why  string
	}{
		"UDP":                      {datagram("SOCKET_RCVBUFF", "udp_queue_rcv_one_skb"), trace.HostState{Sockets: []trace.Socket{idle, socket}}, "socket-buffer-full", trace.Certain, "slowd (pid 12)"},
		"UDP, socket is gone":      {datagram("SOCKET_RCVBUFF", "udp_queue_rcv_one_skb"), trace.HostState{}, "socket-buffer-full", trace.Likely, ""},
		"UDP, no reason":           {datagram("", "udpv6_queue_rcv_one_skb"), trace.HostState{Sockets: []trace.Socket{socket}}, "socket-buffer-full", trace.Likely, "has dropped 7 packets"},
		"UDP, no reason, no drops": {datagram("", "udp_queue_rcv_one_skb"), trace.HostState{Sockets: []trace.Socket{idle}}, "", 0, ""},
		"TCP":                      {dropped(vip4, "SOCKET_BACKLOG", "tcp_add_backlog"), trace.HostState{Sockets: []trace.Socket{socket}}, "socket-buffer-full", trace.Certain, "Of its 4096 bytes 4000"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if q, ok := Question(&tt.c); !ok || !q.Receivers {
				t.Error("nobody asks for the socket")
			}
			tt.s.Onward = found
			f, ok := Explain(&tt.c, &tt.s)
			if !ok {
				f = trace.Finding{}
			}
			if f.ID != tt.id || f.Confidence != tt.conf || !strings.Contains(f.Cause, tt.why) {
				t.Fatalf("found %q, %s: %s; want %q, %s, %s", f.ID, f.Confidence, f.Cause, tt.id, tt.conf, tt.why)
			}
			if ok {
				checkComplete(t, &f)
			}
		})
	}
}
