package lab

import (
	"context"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netns"
)

// Resolver is what a service does that answers DNS. It knows names under lab.test,
// which all have one address of each family; other names do not exist.
type Resolver struct {
	Silent   bool           // it reads queries, and answers nothing
	Rcode    int            // instead of an answer; 0: none
	Delay    time.Duration  // before each answer
	Truncate bool           // no answer fits into a datagram
	Forward  netip.AddrPort // it asks this one; invalid: nobody
}

// zone is what a lab's resolvers know.
const zone = ".lab.test."

// resolverServer answers DNS on one socket.
type resolverServer struct {
	Resolver
	Netns  string // name of the namespace that it asks others from
	server *dns.Server
	socket interface{ File() (*os.File, error) }
	asking chan struct{} // as many as ask another one at once
}

// resolver opens the service's socket in the calling thread's namespace and begins to answer.
func (s Service) resolver(ctx context.Context, name string) (*resolverServer, error) {
	if s.UDP {
		conn, err := s.listenUDP(ctx)
		if err != nil {
			return nil, err
		}
		return startResolver(*s.DNS, name, conn, nil), nil
	}
	listener, err := s.listen(ctx)
	if err != nil {
		return nil, err
	}
	return startResolver(*s.DNS, name, nil, listener), nil
}

// startResolver begins to answer on one of the two.
func startResolver(behaviour Resolver, name string, datagrams *net.UDPConn, listener *net.TCPListener) *resolverServer {
	r := &resolverServer{Resolver: behaviour, Netns: name, asking: make(chan struct{}, maxAsking)}
	r.server = &dns.Server{Handler: r}
	if datagrams != nil {
		r.server.PacketConn, r.socket = datagrams, datagrams
	} else {
		r.server.Listener, r.socket = listener, listener
	}
	started := make(chan struct{})
	r.server.NotifyStartedFunc = func() { close(started) }
	go func() { _ = r.server.ActivateAndServe() }() // it ends with its socket
	<-started
	return r
}

func (r *resolverServer) file() (*os.File, error) { return r.socket.File() }

func (r *resolverServer) stop() { _ = r.server.Shutdown() }

// ServeDNS implements dns.Handler.
func (r *resolverServer) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	if r.Silent || len(q.Question) != 1 {
		return
	}
	time.Sleep(r.Delay)
	m := new(dns.Msg).SetReply(q)
	m.RecursionAvailable = true
	_, datagram := w.RemoteAddr().(*net.UDPAddr)
	switch {
	case r.Rcode != 0:
		m.Rcode = r.Rcode
	case r.Truncate && datagram:
		m.Truncated = true
	case r.Forward.IsValid():
		r.forward(m, q)
	default:
		answerFromZone(m, q.Question[0])
	}
	_ = w.WriteMsg(m) // that it does not arrive is what labs are about
}

// forward asks another resolver.
func (r *resolverServer) forward(m, q *dns.Msg) {
	m.Rcode = dns.RcodeServerFailure
	select {
	case r.asking <- struct{}{}:
		defer func() { <-r.asking }()
	default:
		return
	}
	ns, err := netns.GetFromName(r.Netns)
	if err != nil {
		return
	}
	defer ns.Close()
	_ = enter(ns, func() error {
		client := dns.Client{Timeout: forwardTimeout}
		answer, _, err := client.Exchange(q.Copy(), r.Forward.String())
		if err == nil {
			m.Rcode, m.Answer = answer.Rcode, answer.Answer
		}
		return err
	})
}

// maxAsking bounds what a resolver does that asks itself.
const maxAsking = 8

// forwardTimeout is how long a resolver waits for the one that it asks.
const forwardTimeout = 1500 * time.Millisecond

func answerFromZone(m *dns.Msg, q dns.Question) {
	if !strings.HasSuffix(strings.ToLower(q.Name), zone) || strings.Count(q.Name, ".") > 3 {
		m.Rcode = dns.RcodeNameError
		return
	}
	header := dns.RR_Header{Name: q.Name, Rrtype: q.Qtype, Class: dns.ClassINET, Ttl: 30}
	switch q.Qtype {
	case dns.TypeA:
		m.Answer = []dns.RR{&dns.A{Hdr: header, A: servers.addr(IPv4, 20).AsSlice()}}
	case dns.TypeAAAA:
		m.Answer = []dns.RR{&dns.AAAA{Hdr: header, AAAA: servers.addr(IPv6, 20).AsSlice()}}
	}
}

// Lookup is a question that a lab's client asks as resolver libraries do: both types,
// from server to server and from name to name of its search list, by TCP where the
// answer does not fit.
type Lookup struct {
	Names   []string         // one after the other, until one exists
	Servers []netip.AddrPort // after the client's own
	Timeout time.Duration    // of each query; 0: lookupTimeout
}

// lookupTimeout gives a slow machine time to answer.
const lookupTimeout = 2 * time.Second

// resolve looks the names up in the calling thread's namespace.
func (c Client) resolve() Outcome {
	outcome := Timeout
	for _, name := range c.Lookup.Names {
		exists := false
		for _, kind := range []uint16{dns.TypeA, dns.TypeAAAA} {
			answer := c.askServers(name, kind)
			switch {
			case answer == nil:
				return outcome
			case answer.Rcode != dns.RcodeSuccess && answer.Rcode != dns.RcodeNameError:
				return Broken
			}
			outcome = Connected
			exists = exists || len(answer.Answer) > 0
		}
		if exists {
			return Connected
		}
	}
	return outcome
}

// askServers asks one server after the other, twice; nil: none answers.
func (c Client) askServers(name string, kind uint16) *dns.Msg {
	timeout := c.Lookup.Timeout
	if timeout == 0 {
		timeout = lookupTimeout
	}
	for range 2 {
		for _, server := range append([]netip.AddrPort{c.Server}, c.Lookup.Servers...) {
			q := new(dns.Msg).SetQuestion(name, kind)
			udp := dns.Client{Timeout: timeout}
			answer, _, err := udp.Exchange(q, server.String())
			if err == nil && answer.Truncated {
				tcp := dns.Client{Net: "tcp", Timeout: connectTimeout}
				answer, _, err = tcp.Exchange(q, server.String())
				if err != nil {
					return nil
				}
			}
			if err == nil {
				return answer
			}
		}
	}
	return nil
}
