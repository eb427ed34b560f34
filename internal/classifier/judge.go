package classifier

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/replypath/replypath/internal/netstate"
	"github.com/replypath/replypath/pkg/trace"
)

// Verdict is what becomes of the packet.
type Verdict uint8

// The verdicts.
const (
	Pass    Verdict = iota
	Drop            // it is dropped
	Unknown         // it cannot be told
)

// Judgement is a verdict, and who gave it.
type Judgement struct {
	Verdict Verdict
	By      string // for people: what was not understood, or what drops
	// Ran: a program that keeps state was run to find out.
	Ran bool
}

// Judge takes the packet past the classifiers of a device, in order, as far as
// they are understood. It runs on a thread in the device's namespace. runAll allows
// programs to be run that keep state.
func Judge(found []netstate.Classifier, p *Packet, index uint32, runAll bool) Judgement {
	j := Judgement{}
	tcx := false
	for i := range found {
		c := &found[i]
		if tcx && (c.Point == trace.TCIngress || c.Point == trace.TCEgress) {
			break // a program of tcx let it pass: the filters are not asked
		}
		verdict, ended, ran := one(c, p, index, runAll)
		j.Ran = j.Ran || ran
		if verdict == Pass && ended {
			if c.Point == trace.TCXIngress || c.Point == trace.TCXEgress {
				tcx = true
				continue
			}
			if c.Point == trace.TCIngress || c.Point == trace.TCEgress {
				return j
			}
		}
		if verdict != Pass {
			j.Verdict, j.By = verdict, describe(c)
			return j
		}
	}
	return j
}

// describe names a classifier.
func describe(c *netstate.Classifier) string {
	if c.Program != 0 {
		return fmt.Sprintf("a BPF program (id %d) at %s", c.Program, c.Point)
	}
	return fmt.Sprintf("a %s filter (pref %d) at %s", c.Kind, c.Priority, c.Point)
}

// Verdicts of tc and XDP (include/uapi/linux/pkt_cls.h, bpf.h).
const (
	actUnspec     = -1
	actOK         = 0
	actReclassify = 1
	actShot       = 2
	actPipe       = 3
	xdpAborted    = 0
	xdpDrop       = 1
	xdpPass       = 2
)

// one asks one classifier. ended: a verdict was given, and those after it are not asked.
func one(c *netstate.Classifier, p *Packet, index uint32, runAll bool) (v Verdict, ended, ran bool) {
	if c.Protocol != 0 && c.Protocol != unix.ETH_P_ALL && c.Protocol != p.etherType() {
		return Pass, false, false
	}
	if c.Chain != 0 {
		return Pass, false, false // only a goto leads there, and that is not understood
	}
	if c.Program == 0 {
		v, ended = filtered(c, p)
		return v, ended, false
	}
	code, ran, ok := run(c, p, index, runAll)
	switch {
	case !ok:
		return Unknown, true, ran
	case c.Point == trace.XDPNative || c.Point == trace.XDPGeneric:
		switch code {
		case xdpPass:
			return Pass, false, ran
		case xdpDrop, xdpAborted:
			return Drop, true, ran
		}
		return Unknown, true, ran // it sends the packet elsewhere
	case !c.Direct:
		return Unknown, true, ran // it names a class, and actions follow
	}
	v, ended = ofCode(code)
	return v, ended, ran
}

// ofCode reads a verdict of tc.
func ofCode(code int32) (v Verdict, ended bool) {
	switch code {
	case actOK, actReclassify:
		return Pass, true
	case actShot:
		return Drop, true
	case actUnspec, actPipe:
		return Pass, false
	}
	return Unknown, true
}
