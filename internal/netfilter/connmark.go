package netfilter

import "fmt"

// setConnMark writes the connection's mark.
type setConnMark struct {
	from register
	text string
}

func (e setConnMark) run(m *machine) { m.setConnMark(m.load(e.from, 4)) }

func (e setConnMark) write(w *writer) { passive{e.text}.write(w) }

// setConnMark writes the mark of the connection, as far as it is sure to happen.
func (m *machine) setConnMark(to bits) {
	if !m.sure || m.match != yes {
		to = m.packet.connMark.merge(to)
	}
	m.packet.connMark = to
}

// Modes of CONNMARK (include/uapi/linux/netfilter/xt_connmark.h).
const (
	connMarkSet     = 0
	connMarkSave    = 1
	connMarkRestore = 2
)

// xtConnMark is the target CONNMARK (struct xt_connmark_tginfo1).
type xtConnMark struct {
	ctMark, ctMask, mask uint32
	mode                 uint8
}

// decodeConnMark reads it; false for one that shifts bits, or is not known.
func decodeConnMark(r *reader, revision uint8) (e xtConnMark, ok bool) {
	e = xtConnMark{ctMark: r.u32(), ctMask: r.u32(), mask: r.u32()}
	shift := uint8(0)
	if revision >= 2 {
		r.u8()
		shift = r.u8()
	}
	e.mode = r.u8()
	return e, revision >= 1 && shift == 0 && !r.short
}

func (e xtConnMark) run(m *machine) {
	p := m.packet
	mark, known := p.mark.masked32()
	conn, connKnown := p.connMark.masked32()
	const whole = ^uint32(0)
	switch e.mode {
	case connMarkSet:
		if connKnown&^e.ctMask != whole&^e.ctMask {
			m.setConnMark(unknownBits(4))
			return
		}
		m.setConnMark(native32(conn&^e.ctMask ^ e.ctMark))
	case connMarkSave:
		p.markRead = true
		if known&e.mask != e.mask || connKnown&^e.ctMask != whole&^e.ctMask {
			m.setConnMark(unknownBits(4))
			return
		}
		m.setConnMark(native32(conn&^e.ctMask ^ mark&e.mask))
	case connMarkRestore:
		if connKnown&e.ctMask != e.ctMask || known&^e.mask != whole&^e.mask {
			m.setMark(unknownBits(4))
			return
		}
		m.setMark(native32(mark&^e.mask ^ conn&e.ctMask))
	}
}

func (e xtConnMark) write(w *writer) {
	name := map[uint8]string{connMarkSet: "--set-xmark " + maskedNumber(e.ctMark, e.ctMask), connMarkSave: "--save-mark", connMarkRestore: "--restore-mark"}[e.mode]
	passive{"-j CONNMARK " + name}.write(w)
}

// xtConnMarked is the match connmark.
type xtConnMarked struct{ xtMark }

func (x *xtConnMarked) matches(p *packet) truth {
	return p.connMark.maskXor(native32(x.mask).data, nil).equal(native32(x.value).data).xor(x.invert).and(p.conntrack.there)
}

func (x *xtConnMarked) option() string {
	return "-m connmark " + negated(x.invert, fmt.Sprintf("--mark %s", maskedNumber(x.value, x.mask)))
}
