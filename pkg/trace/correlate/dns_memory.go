package correlate

import (
	"net/netip"
	"strings"
	"time"

	"github.com/replypath/replypath/pkg/trace"
	"github.com/replypath/replypath/pkg/trace/dns"
)

// What is remembered of answers: the addresses that they gave, so that a connection to
// one of them can be told what it came from; answers that did not fit into a datagram,
// as TCP is to make them good; when a server last answered; names that a search list
// made, and that do not exist.

const (
	maxAnswers  = 16384
	maxCut      = 256
	maxSearches = 1024
	maxSteps    = 16
	// cutAge is how long after a truncated answer a TCP connection is its retry.
	cutAge = 15 * time.Second
	// searchAge is how long a resolver takes from one name of its search list to the next.
	searchAge = 5 * time.Second
	// vainSteps is how many names have to be asked in vain to be worth telling.
	vainSteps = 3
)

// serverAt is a server, as a client in a namespace knows it.
type serverAt struct {
	netns  trace.Netns
	server netip.AddrPort
}

// answers are the addresses that were answered, in a ring: the oldest is forgotten first.
type answers struct {
	known map[addressAt]int
	ring  []answer
	next  int
}

type addressAt struct {
	netns trace.Netns
	addr  netip.Addr
}

type answer struct {
	addressAt
	name   string
	server netip.AddrPort
	ttl    uint32
	at     time.Time
}

func newAnswers() answers { return answers{known: make(map[addressAt]int)} }

func (a *answers) add(n answer) {
	if i, ok := a.known[n.addressAt]; ok {
		a.ring[i] = n
		return
	}
	if len(a.ring) < maxAnswers {
		a.ring = append(a.ring, n)
		a.known[n.addressAt] = len(a.ring) - 1
		return
	}
	delete(a.known, a.ring[a.next].addressAt)
	a.ring[a.next] = n
	a.known[n.addressAt] = a.next
	a.next = (a.next + 1) % maxAnswers
}

// cutKey is a client and the server that answered it.
type cutKey struct {
	client netip.Addr
	server netip.AddrPort
}

// truncation is the latest answer that did not fit, and since when they did not.
type truncation struct {
	*trace.Exchange
	since time.Time
}

// searcher is a process that may have a search list.
type searcher struct {
	netns trace.Netns
	addr  netip.Addr
	pid   uint32
}

// search are names that do not exist, asked one after another.
type search struct {
	steps   []string
	queries int
	last    time.Time
}

// learn remembers a response that its client may use.
func (t *DNSTable) learn(x *exchange, h *dns.Header, message []byte) {
	if len(t.answering) >= maxServers {
		clear(t.answering)
	}
	if len(t.homes) >= maxServers {
		clear(t.homes)
	}
	t.homes[x.home] = struct{}{}
	t.answering[serverAt{x.home, x.Server}] = x.First.Add(x.Latency)
	if x.Outcome != trace.Answered {
		return
	}
	t.serve(x)
	if h.TC && x.Protocol == trace.UDP {
		if len(t.cut) >= maxCut {
			clear(t.cut)
		}
		key := cutKey{x.Client.Addr(), x.Server}
		c := truncation{&x.Exchange, x.First}
		if before, ok := t.cut[key]; ok && x.First.Sub(before.Last) < cutAge {
			c.since = before.since // a twin: the connection for the one may have begun before the other was asked
		}
		t.cut[key] = c
	} else if len(t.cut) > 0 && x.Protocol == trace.TCP {
		delete(t.cut, cutKey{x.Client.Addr(), x.Server})
	}
	dns.Addresses(message, func(a netip.Addr, ttl uint32) {
		t.memory.add(answer{addressAt{x.home, a}, x.Name, x.Server, ttl, x.First.Add(x.Latency)})
	})
}

// follow follows a search list from name to name.
func (t *DNSTable) follow(x *exchange, told *trace.Exchange) {
	key := searcher{x.home, x.Client.Addr(), x.Process.PID}
	s := t.searches[key]
	if s == nil && told.Rcode != rcodeNXDOMAIN || !x.made {
		return
	}
	if s == nil || x.First.Sub(s.last) > searchAge {
		delete(t.searches, key)
		if told.Rcode != rcodeNXDOMAIN {
			return
		}
		if len(t.searches) >= maxSearches {
			clear(t.searches)
		}
		s = new(search)
		t.searches[key] = s
	}
	s.last = told.Last
	if told.Rcode == rcodeNXDOMAIN {
		s.queries++
		if n := len(s.steps); n > 0 && strings.EqualFold(s.steps[n-1], told.Name) {
			return
		}
		if len(s.steps) >= maxSteps { // many names that do not exist are no search list
			s.steps, s.queries = append(s.steps[:0], s.steps[1:]...), s.queries-1
		}
		s.steps = append(s.steps, told.Name)
		return
	}
	if h, err := dns.Peek(told.Response); err != nil || h.Answers == 0 {
		return // the other type may have addresses
	}
	t.amplified(x, told, s)
	delete(t.searches, key)
}

// amplified opens a case about a name that was asked as it is only after all that a search list made of it.
func (t *DNSTable) amplified(x *exchange, told *trace.Exchange, s *search) {
	stem := strings.TrimSuffix(told.Name, ".") + "."
	var vain []string
	for _, step := range s.steps {
		if len(step) > len(stem) && strings.EqualFold(step[:len(stem)], stem) {
			vain = append(vain, step)
		}
	}
	if len(vain) < vainSteps {
		return
	}
	t.addCase(trace.SymptomAmplified, told, &trace.Trouble{
		Exchange: told, Steps: vain, Queries: s.queries + 1, Related: []trace.Tuple{{Protocol: x.Protocol, Src: x.Client, Dst: x.Server}},
	})
}

// addRetransmit opens a case about the TCP connection that is to fetch what did not fit
// into a datagram, and that is not answered.
func (t *DNSTable) addRetransmit(ev *trace.Event) {
	if len(t.cut) == 0 || ev.Tuple.Protocol != trace.TCP {
		return
	}
	udp, ok := t.cut[cutKey{ev.Tuple.Src.Addr(), ev.Tuple.Dst}]
	if !ok || ev.Time.Sub(udp.Last) > cutAge {
		return
	}
	x := &exchange{Exchange: *udp.Exchange, home: ev.Netns, asked: ev.Time}
	for i := range t.troubles {
		if o := t.troubles[i].x; o.Client == ev.Tuple.Src && o.Protocol == trace.TCP {
			return
		}
	}
	x.Protocol, x.Client, x.Outcome, x.Drop, x.Response, x.Twin, x.Repeats = trace.TCP, ev.Tuple.Src, trace.Unanswered, nil, nil, 0, 0
	x.First, x.Last, x.Latency, x.Stage, x.Attempts = udp.since, ev.Time, 0, trace.StageClient, 1
	x.Tuples = []trace.Tuple{{Protocol: trace.TCP, Src: ev.Tuple.Src, Dst: ev.Tuple.Dst}}
	x.Sightings = []trace.Sighting{{Time: ev.Time, Place: t.place(ev.Netns, ev.Time), Device: ev.Device, Count: 1, Transmit: true, Made: true}}
	if len(t.troubles) < maxTroubles {
		t.troubles = append(t.troubles, trouble{x: x, told: &x.Exchange, symptom: trace.SymptomUnanswered, due: ev.Time.Add(troubleWait)})
	}
}

// Annotate says what DNS has to do with a case about packets.
func (t *DNSTable) Annotate(c *trace.Case) {
	p := &c.Path
	if p.Protocol == trace.UDP && c.DNS == "" {
		c.DNS = t.questionOf(p)
	}
	if p.Protocol == trace.TCP && len(t.cut) > 0 {
		if udp, ok := t.cut[cutKey{p.Client.Addr(), p.Server}]; ok && !p.First.Before(udp.since) && p.First.Sub(udp.Last) < cutAge {
			c.Truncated = dns.Question(udp.Type, udp.Name)
		}
	}
	if len(p.Request) == 0 {
		return
	}
	if i, ok := t.memory.known[addressAt{p.Request[0].Place.Netns, p.Server.Addr()}]; ok {
		if a := &t.memory.ring[i]; !p.First.Before(a.at) {
			c.Resolved = trace.Resolved{Name: a.name, Server: a.server, TTL: a.ttl, Age: uint32(p.First.Sub(a.at) / time.Second)}
		}
	}
}

// maxLookedAt bounds the search for the query that a path is of.
const maxLookedAt = 512

func (t *DNSTable) questionOf(p *trace.Path) string {
	for _, q := range []*queue{&t.waiting, &t.expired, &t.lingering} {
		for x, n := q.last, 0; x != nil && n < maxLookedAt; x, n = x.ago, n+1 {
			if x.Client == p.Client && x.Server == p.Server && x.Protocol == p.Protocol {
				return dns.Question(x.Type, x.Name)
			}
		}
	}
	return ""
}

// payloadQuestion is the DNS question in a packet's payload; "": none.
func payloadQuestion(ev *trace.Event) string {
	if ev.PayloadLength == 0 || ev.Tuple.Protocol != trace.UDP || ev.Inner || ev.Fragment {
		return ""
	}
	h, err := dns.Peek(ev.Payload)
	if err != nil || !h.HasQuestion() {
		return ""
	}
	return dns.Question(h.Type, h.Name())
}
