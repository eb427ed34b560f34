package netfilter

import (
	"errors"
	"slices"

	"github.com/replypath/replypath/pkg/trace"
)

// Bounds of one walk. The kernel allows 16 jumps (NFT_JUMP_STACK_SIZE).
const (
	mostDepth      = 64
	mostSteps      = 1_000_000
	mostCandidates = 64
)

// errSteps says that the rules were too many to walk.
var errSteps = errors.New("walk rules: too many rules to follow")

// drop is a rule or policy that may drop the packet.
type drop struct {
	chain   *chain
	rule    *rule // nil: the policy
	reject  bool
	certain bool
	queue   bool // it does not drop, but hands the packet to a program
	queues  queues
}

// counter is the counter of the rule or policy.
func (d drop) counter() counter {
	if d.rule != nil {
		return d.rule.counter
	}
	return d.chain.base.counter
}

// walker takes a packet through the base chains of one hook.
type walker struct {
	packet *packet
	drops  []drop
	// denied are drops that the rules demand and whose counter says that they
	// never happened: the rule is misunderstood, or its counter was reset.
	denied []drop
	queued []drop // hand-overs to programs
	// changers are the rules that translate the packet, rewrite it or exempt it from tracking.
	changers []drop
	steps    int
	errs     []error
}

// drops returns what may drop the packet at its hook, in the order in which it
// meets them.
func (s *ruleset) drops(p *packet) ([]drop, error) {
	w := &walker{packet: p}
	known := p.mark
	certain := w.hook(s.bases(p))
	written := p.markWritten
	if !written && (len(w.drops) > 0 || !p.markRead || !s.writesMark()) {
		return w.result(certain)
	}
	// The mark is that of the packet when it was dropped. If rules write it
	// here, what it was before is unknown.
	again := &walker{packet: p}
	p.mark, p.markRead, p.markWritten = unknownBits(4), false, false
	sure := again.hook(s.bases(p))
	p.mark = known
	if !written && len(again.drops) == 0 {
		return w.result(certain)
	}
	if certain && sure && sameDrops(w.drops, again.drops) {
		return again.result(true)
	}
	for _, d := range w.drops {
		again.add(d.chain, d.rule, d.reject, false)
	}
	again.denied = append(again.denied, w.denied...)
	again.queued = w.queued
	return again.result(false)
}

// writesMark reports whether a rule that was read can change the mark.
func (s *ruleset) writesMark() bool {
	for _, t := range s.tables {
		for _, c := range t.chains {
			for i := range c.rules {
				if slices.ContainsFunc(c.rules[i].exprs, setsMark) {
					return true
				}
			}
		}
	}
	return false
}

func setsMark(e expr) bool {
	switch e := e.(type) {
	case setMeta:
		return e.key == metaMark
	case xtSetMark:
		return true
	case xtConnMark:
		return e.mode == connMarkRestore
	}
	return false
}

func sameDrops(a, b []drop) bool {
	return slices.EqualFunc(a, b, func(x, y drop) bool { return x.chain == y.chain && x.rule == y.rule })
}

// result returns the drops; those that a counter denies only for want of others.
func (w *walker) result(certain bool) ([]drop, error) {
	drops := w.drops
	if len(drops) == 0 {
		drops = w.denied
	}
	for i := range drops {
		drops[i].certain = drops[i].certain && certain && len(drops) == 1
	}
	drops = append(drops, w.queued...)
	return drops, errors.Join(w.errs...)
}

// hook walks the base chains. An accept ends one chain, a drop ends all. It
// reports whether a drop that was found is certain.
func (w *walker) hook(bases []*chain) bool {
	certain := true
	for i, c := range bases {
		w.packet.at(c.base.priority)
		here := certain
		if c.base.kind == "nat" {
			switch w.packet.conntrack.isNew() {
			case no:
				continue
			case maybe:
				here = false
			}
		}
		watched := w.on(c)
		if watched == no {
			continue
		}
		here = here && watched == yes
		before := len(w.drops)
		r := w.chain(c, stay{certain: here, sure: watched == yes}, 0)
		if r.falls && c.base.drop && !r.stopped {
			w.policy(c, here && !r.ended)
		}
		if w.settled() {
			return !w.rivals(c, bases[i+1:])
		}
		if len(w.drops) > before {
			certain = false
		}
	}
	return false
}

// rivals looks at chains that may run before c though they are listed after it:
// those of other tables with its priority. It adds their drops to the candidates.
func (w *walker) rivals(c *chain, rest []*chain) bool {
	rival := &walker{packet: w.packet}
	for _, r := range rest {
		if r.base.priority == c.base.priority && r.table != c.table {
			rival.hook([]*chain{r})
		}
	}
	for _, d := range rival.drops {
		w.add(d.chain, d.rule, d.reject, false)
	}
	w.errs = append(w.errs, rival.errs...)
	return len(rival.drops) > 0
}

// denies reports that a counter shows that the rule or policy did not take the
// packet. Of a packet that has not come yet no counter can tell.
func (w *walker) denies(c counter) bool { return !w.packet.asked.Ahead && c.never() }

// settled reports whether the last drop found is sure to happen.
func (w *walker) settled() bool {
	return len(w.drops) > 0 && w.drops[len(w.drops)-1].certain
}

// policy records the drop by a base chain's policy.
func (w *walker) policy(c *chain, certain bool) {
	if w.denies(c.base.counter) {
		if certain {
			w.denied = append(w.denied, drop{chain: c, certain: true})
		}
		return
	}
	w.add(c, nil, false, certain)
}

// on tells whether a netdev chain watches the packet's device.
func (w *walker) on(c *chain) truth {
	if len(c.base.devices) == 0 {
		return yes
	}
	d := w.packet.in
	if w.packet.hook == trace.Egress {
		d = w.packet.out
	}
	if d.name == "" {
		return maybe
	}
	return truthOf(slices.Contains(c.base.devices, d.name))
}

// outcome is what may have become of a packet in a chain.
type outcome struct {
	falls   bool // it may come out at the end, or by return
	ended   bool // its way through the base chain may have ended inside
	stopped bool // the walk was given up: nothing is known
}

// add records a drop once; the walk may come by more than once.
func (w *walker) add(c *chain, r *rule, reject, certain bool) {
	for i := range w.drops {
		if w.drops[i].chain == c && w.drops[i].rule == r {
			w.drops[i].certain = w.drops[i].certain || certain
			return
		}
	}
	if len(w.drops) < mostCandidates {
		w.drops = append(w.drops, drop{chain: c, rule: r, reject: reject, certain: certain})
	}
}

// report keeps an error once.
func (w *walker) report(err error) {
	if err != nil && !slices.ContainsFunc(w.errs, func(e error) bool { return errors.Is(e, err) }) {
		w.errs = append(w.errs, err)
	}
}

// chain walks the rules of a chain that the packet has come to.
func (w *walker) chain(c *chain, s stay, depth int) outcome {
	rules, err := c.load()
	w.report(err)
	out := outcome{}
	if err != nil {
		out.ended = true // rules that were not read may do anything
		s.certain = false
	}
	s.alive = true
	for i := range rules {
		if w.steps++; w.steps > mostSteps {
			w.report(errSteps)
			return outcome{falls: true, ended: true, stopped: true}
		}
		w.rule(c, &rules[i], &s, &out, depth)
		if !s.alive || out.stopped {
			return out
		}
	}
	out.falls = true
	return out
}

// stay is how sure a packet is to be at a place.
type stay struct {
	alive   bool // it may be
	certain bool // it is
	sure    bool // it is, unless its way has ended altogether
}

// rule walks one rule.
func (w *walker) rule(c *chain, r *rule, s *stay, out *outcome, depth int) {
	before := w.packet.altered()
	results, err := r.evaluate(w.packet, c.table, s.sure)
	w.report(err)
	if after := w.packet.altered(); after != before && len(w.changers) < mostCandidates {
		sure := after.translations == before.translations || w.packet.translations[after.translations-1].Certain
		w.changers = append(w.changers, drop{chain: c, rule: r, certain: sure})
	}
	for _, v := range results {
		w.take(c, r, v, s, out, depth)
		if !s.alive || out.stopped {
			return
		}
	}
}

// take follows a verdict.
func (w *walker) take(c *chain, r *rule, v result, s *stay, out *outcome, depth int) {
	if v.truth == no || v.truth == maybe && w.denies(r.counter) {
		return // a counter that counted nothing says that the rule did not match
	}
	inside := stay{certain: s.certain && v.truth == yes, sure: s.sure && v.truth == yes}
	switch v.code {
	case verdictDrop:
		if w.denies(r.counter) {
			w.denied = append(w.denied, drop{chain: c, rule: r, reject: v.reject, certain: inside.certain})
			return
		}
		w.add(c, r, v.reject, inside.certain)
		out.ended = true
		s.leave(v.truth)
	case verdictAccept, verdictStolen, verdictQueue:
		if v.queue && len(w.queued) < mostCandidates {
			w.queued = append(w.queued, drop{chain: c, rule: r, certain: inside.certain, queue: true, queues: v.queues})
		}
		out.ended = true
		s.leave(v.truth)
	case verdictReturn:
		out.falls = true
		s.leave(v.truth)
		s.sure = false
	case verdictJump:
		r := w.jump(c, v.chain, inside, depth)
		out.ended, out.stopped = out.ended || r.ended, out.stopped || r.stopped
		if r.ended {
			s.certain = false
		}
		if v.truth == yes && !r.falls {
			s.alive = false
		}
	case verdictGoto:
		r := w.jump(c, v.chain, inside, depth)
		out.ended, out.stopped = out.ended || r.ended, out.stopped || r.stopped
		out.falls = out.falls || r.falls
		s.leave(v.truth)
		s.sure = false
	case verdictOpaque:
		out.ended = true
		s.certain = false
	}
}

// leave says that the packet has left the chain, if t.
func (s *stay) leave(t truth) {
	if t == yes {
		s.alive = false
	}
	s.certain = false
}

// jump walks another chain of the same table.
func (w *walker) jump(c *chain, name string, s stay, depth int) outcome {
	to := c.table.chains[name]
	if to == nil || depth >= mostDepth {
		return outcome{falls: true, ended: true}
	}
	return w.chain(to, s, depth+1)
}
