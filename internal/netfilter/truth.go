package netfilter

// truth is the answer of a match: it fits the packet, it does not, or it
// cannot be told from what is known of the packet.
type truth uint8

const (
	no truth = iota
	maybe
	yes
)

// truthOf returns yes or no.
func truthOf(b bool) truth {
	if b {
		return yes
	}
	return no
}

// not returns the contrary; what cannot be told stays so.
func (t truth) not() truth { return yes - t }

// and is Kleene's conjunction.
func (t truth) and(u truth) truth { return min(t, u) }

// or is Kleene's disjunction.
func (t truth) or(u truth) truth { return max(t, u) }

// xor returns the contrary of t when invert is set.
func (t truth) xor(invert bool) truth {
	if invert {
		return t.not()
	}
	return t
}
