package correlate

import (
	"testing"
	"time"

	"github.com/replypath/replypath/pkg/trace"
)

// A tunnel's packet that is dropped takes the carried SYN with it: the case is
// about the outer packet, on the path of the inner one.
func TestTunnelDrop(t *testing.T) {
	s := newScene(t, Config{})
	syn := tcp("198.51.100.7:40000", "203.0.113.80:80")
	outer := trace.Tuple{Protocol: trace.UDP, Src: tcp("10.2.0.10:5000", "10.2.0.20:4789").Src, Dst: tcp("10.2.0.10:5000", "10.2.0.20:4789").Dst}
	p := s.syn(syn, 77).tx(client, 0, 2).rx(lb, 3).tx(lb, 3, 4)
	p.ev.Tuple, p.ev.Flags, p.ev.Seq = outer, 0, 0
	p.ev.Carried = trace.Carried{Kind: "vxlan", ID: 42, Tuple: syn, Flags: trace.SYN, Seq: 77}
	p.drop(backend, 2, "VXLAN_VNI_NOT_FOUND", "vxlan_rcv")
	s.cases(0) // the first may be what a switch in a program has no flow for yet
	p.drop(backend, 2, "VXLAN_VNI_NOT_FOUND", "vxlan_rcv")
	c := s.cases(1)[0]
	if c.Path.Connection != syn || c.Event.Tuple != outer || c.Direction != trace.Request || c.Place.Netns != backend {
		t.Errorf("case of %s about %s, %s in %d", c.Path.Connection, c.Event.Tuple, c.Direction, c.Place.Netns)
	}
	if got := namespaces(c.Path.Request); len(got) != 3 || got[2] != backend {
		t.Errorf("hops %v", got)
	}
}

// Data that a tunnel loses matters only when it keeps losing it; a group's is nobody's exchange.
func TestTunnelDropOfData(t *testing.T) {
	s := newScene(t, Config{})
	data := tcp("198.51.100.7:40000", "203.0.113.80:80")
	for range dataDrops {
		s.cases(0)
		p := s.send(tcp("10.2.0.10:5000", "10.2.0.20:4789"), 0, 0, 0)
		p.ev.Tuple.Protocol = trace.UDP
		p.ev.Carried = trace.Carried{Kind: "vxlan", ID: 42, Tuple: data, Flags: trace.ACK}
		p.drop(backend, 2, "NO_SOCKET", "__udp4_lib_rcv")
	}
	s.cases(1)
	p := s.send(tcp("10.2.0.10:5000", "10.2.0.20:4789"), 0, 0, 0)
	p.ev.Carried = trace.Carried{Kind: "vxlan", Tuple: tcp("10.9.0.1:1", "224.0.0.251:5353"), Flags: trace.SYN}
	p.drop(backend, 2, "NO_SOCKET", "__udp4_lib_rcv")
	s.cases(0)
}

// A tunnel that loses datagrams is a fault when it keeps losing them: a switch in a
// program may have to learn the flow first.
func TestTunnelDropOfDatagrams(t *testing.T) {
	s := newScene(t, Config{})
	inner := udp("198.51.100.7:40000", "10.244.1.53:53")
	lost := func() {
		p := s.datagram(ask).tx(client, 0, 2).rx(lb, 2).nat(inner).tx(lb, 2, 4)
		p.ev.Tuple, p.ev.Conntrack = udp("10.2.0.10:5000", "10.2.0.20:4789"), trace.Conntrack{}
		p.ev.Carried = trace.Carried{Kind: "vxlan", ID: 42, Tuple: inner}
		p.drop(backend, 2, "VXLAN_VNI_NOT_FOUND", "vxlan_rcv")
	}
	lost()
	lost()
	s.cases(0)
	s.wait(time.Second)
	lost()
	c := s.cases(2)[1] // and that the question before went nowhere
	if c.Symptom != trace.SymptomDrop || c.Direction != trace.Request || c.Path.Server != ask.Dst || c.Place.Netns != backend {
		t.Errorf("%s %s of %s in %d", c.Symptom, c.Direction, c.Path.Server, c.Place.Netns)
	}
	if got := namespaces(c.Path.Request); len(got) != 3 || got[2] != backend {
		t.Errorf("hops %v", got)
	}
}
