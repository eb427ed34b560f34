package netfilter

// expr is one expression of a rule. The expressions of a rule are run one after
// the other until one does not match or gives a verdict (nft_do_chain in
// net/netfilter/nf_tables_core.c).
type expr interface {
	// run evaluates the expression: it may change the registers, lower the
	// rule's match or give a verdict.
	run(*machine)
	// write adds the expression to the rule's text.
	write(*writer)
}

// machine is the state of a rule that is being evaluated.
type machine struct {
	packet *packet
	table  *table
	registers
	match   truth
	sure    bool // the packet is sure to meet the rule, if it comes this far
	results []result
	done    bool // a verdict was given: the rest is not run
	err     error
}

// result is a verdict that a rule gives, and whether it gives it.
type result struct {
	verdict
	truth
}

// evaluate runs a rule. It returns the verdicts that it may give; none is sure
// unless its truth is yes, and a rule without verdict gives none.
func (r *rule) evaluate(p *packet, t *table, sure bool) ([]result, error) {
	m := machine{packet: p, table: t, match: yes, sure: sure}
	for _, e := range r.exprs {
		e.run(&m)
		if m.match == no || m.done {
			break
		}
	}
	return m.results, m.err
}

// test lowers the match to t.
func (m *machine) test(t truth) { m.match = m.match.and(t) }

// give adds a verdict and ends the rule.
func (m *machine) give(v verdict) {
	m.results = append(m.results, result{v, m.match})
	m.done = true
}

// setMark writes the packet's mark, as far as it is sure to happen.
func (m *machine) setMark(to bits) {
	m.packet.markWritten = true
	if !m.sure || m.match != yes {
		to = m.packet.mark.merge(to)
	}
	m.packet.mark = to
}

// immediate writes a constant into a register.
type immediate struct {
	to   register
	data []byte
}

func (e immediate) run(m *machine) { m.store(e.to, knownBits(e.data)) }

// decide gives a verdict: drop, accept, jump, …
type decide struct{ verdict }

func (e decide) run(m *machine) { m.give(e.verdict) }

// payload loads bytes of the packet.
type payload struct {
	to           register
	base         int
	offset, size int
}

func (e payload) run(m *machine) {
	b, there := m.packet.field(e.base, e.offset, e.size)
	m.test(there)
	m.store(e.to, b)
}

// comparison compares a register with a constant as memcmp does.
type comparison struct {
	from register
	op   cmpOp
	data []byte
}

// cmpOp is enum nft_cmp_ops.
type cmpOp uint32

const (
	cmpEq cmpOp = iota
	cmpNeq
	cmpLt
	cmpLte
	cmpGt
	cmpGte
)

func (e comparison) run(m *machine) {
	b := m.load(e.from, len(e.data))
	switch e.op {
	case cmpEq:
		m.test(b.equal(e.data))
	case cmpNeq:
		m.test(b.equal(e.data).not())
	case cmpLt:
		m.test(b.less(e.data))
	case cmpGte:
		m.test(b.less(e.data).not())
	case cmpGt:
		m.test(b.greater(e.data))
	case cmpLte:
		m.test(b.greater(e.data).not())
	default:
		m.test(maybe)
	}
}

// interval tests whether a register lies between two constants.
type interval struct {
	from      register
	invert    bool
	low, high []byte
}

func (e interval) run(m *machine) {
	b := m.load(e.from, min(len(e.low), len(e.high)))
	m.test(b.within(e.low, e.high).xor(e.invert))
}

// bitwise is to = (from & mask) ^ xor, or a shift of a big-endian number.
type bitwise struct {
	from, to  register
	size      int
	op        uint32 // enum nft_bitwise_ops
	mask, xor []byte
	shift     uint32
}

const (
	bitwiseMaskXor = 0
	bitwiseLeft    = 1
	bitwiseRight   = 2
)

func (e bitwise) run(m *machine) {
	switch e.op {
	case bitwiseMaskXor:
		m.store(e.to, m.load(e.from, e.size).maskXor(e.mask, e.xor))
	case bitwiseLeft, bitwiseRight:
		m.store(e.to, m.load(e.from, (e.size+3)/4*4).shifted(e.op == bitwiseLeft, e.shift))
	default:
		m.store(e.to, unknownBits(e.size))
	}
}

// byteorder swaps the bytes of each whole element; what is shorter than one
// stays (nft_byteorder_eval). On a big-endian machine the kernel has nothing to
// swap, and neither have we.
type byteorder struct {
	from, to  register
	size, elt int
}

func (e byteorder) run(m *machine) {
	if e.elt <= 0 || e.size < e.elt {
		return
	}
	b := m.load(e.from, e.size/e.elt*e.elt)
	out := unknownBits(len(b.data))
	for i := range b.data {
		j := i
		if littleEndian {
			j = i/e.elt*e.elt + e.elt - 1 - i%e.elt
		}
		if j < len(b.data) {
			out.data[i], out.known[i] = b.data[j], b.known[j]
		}
	}
	m.store(e.to, out)
}

// lookup looks a register up in a set: a match, a value or a verdict.
type lookup struct {
	from   register
	set    string
	invert bool
	isMap  bool // to is a register, zero the verdict
	to     register
}

func (e lookup) run(m *machine) {
	s := m.table.sets[e.set]
	if s == nil {
		m.unclear()
		return
	}
	if err := s.load(); err != nil {
		m.err = err
		m.unclear()
		return
	}
	found := s.find(m.load(e.from, s.keySize))
	if !e.isMap {
		m.test(found.match.xor(e.invert))
		return
	}
	switch {
	case e.to != registerVerdict:
		m.test(found.match)
		m.store(e.to, found.value(s.dataSize))
	case found.match == yes && len(found.elements) == 1:
		m.verdictOf(found.elements[0].verdict)
	default:
		was := m.match
		for _, el := range found.elements {
			m.match = was.and(maybe)
			m.verdictOf(el.verdict)
		}
		m.done, m.match = found.match == yes, was.and(found.match)
	}
}

// verdictOf gives a map's verdict; "continue" goes on with the rule.
func (m *machine) verdictOf(v verdict) {
	switch v.code {
	case verdictContinue:
	case verdictBreak:
		m.match = m.match.and(no)
	default:
		m.give(v)
	}
}

// unclear says that the rest of the rule rests on what is not understood.
func (m *machine) unclear() {
	m.test(maybe)
	m.forget()
}

// passive does something that neither matches nor decides: counters, logs, …
type passive struct{ text string }

func (passive) run(*machine) {}

// opaque is an expression that is not understood, or depends on what cannot be
// known: rate limits, sockets, routes, the outside of the packet.
type opaque struct{ text string }

func (e opaque) run(m *machine) { m.unclear() }

// opaqueEnd is a statement that may take the packet: queues, synproxy, tproxy.
type opaqueEnd struct {
	text string
	sure bool // it always takes the packet, though not to drop it here
	// queue: it takes the packet for a program, which decides.
	queue  bool
	queues queues
}

// queues are the numbers of those that a statement may choose, and whether the
// packet goes on where no program takes it.
type queues struct {
	first, last uint16
	bypass      bool
}

func (e opaqueEnd) run(m *machine) {
	code := verdictOpaque
	if e.sure {
		code = verdictQueue
	}
	m.give(verdict{code: code, queue: e.queue, queues: e.queues})
}

// rejecting drops and answers with an error.
type rejecting struct {
	kind uint32 // enum nft_reject_types
	code uint8
}

func (e rejecting) run(m *machine) { m.give(verdict{code: verdictDrop, reject: true}) }

// translate is a NAT statement: it accepts.
type translate struct {
	text string
	to   newAddress
}

func (e translate) run(m *machine) {
	m.translate(e.to)
	m.give(verdict{code: verdictAccept})
}

// setMeta writes the mark or another property of the packet.
type setMeta struct {
	key  uint32
	from register
}

func (e setMeta) run(m *machine) {
	if e.key == metaMark {
		m.setMark(m.load(e.from, 4))
	}
}
