package netfilter

import (
	"errors"
	"net"
	"time"

	"github.com/replypath/replypath/pkg/trace"
)

// errChanged says that somebody changed the rules while they were read.
var errChanged = errors.New("read netfilter rules: they changed meanwhile")

// Verdicts returns the rules or policies that drop or reject the packet of q,
// at the first of q.Filters (hooks, most likely first) at which any does. One
// certain verdict, or several candidates when it cannot be told. Rules that hand
// the packet to a program come last.
//
// It reads the rules of the network namespace that the calling thread is in. in
// and out are the devices of q.In and q.Out. An error says what could not be
// read; the verdicts that come with it are not certain.
func Verdicts(q trace.Question, in, out trace.Interface) ([]trace.FilterVerdict, error) {
	if !q.Packet.IsValid() || len(q.Filters) == 0 {
		return nil, nil
	}
	const tries = 3
	until := time.Now().Add(timeLimit)
	for try := 1; ; try++ {
		found, changed, err := verdictsOnce(q, in, out, until)
		if changed && try < tries && time.Now().Before(until) {
			continue
		}
		if changed {
			err = errors.Join(err, errChanged)
		}
		if err != nil {
			for i := range found {
				found[i].Certain = false
			}
		}
		return found, err
	}
}

// verdictsOnce reads the rules and walks them. changed reports that the rule
// set changed meanwhile.
func verdictsOnce(q trace.Question, in, out trace.Interface, until time.Time) (found []trace.FilterVerdict, changed bool, err error) {
	rules, socket, err := readRuleset(q, until)
	if socket != nil {
		defer socket.close()
	}
	routes := &kernelRoutes{}
	in, out = withName(in, q.In), withName(out, q.Out)
	tracking := q.Ahead && q.Fragment && rules.tracks(familyOf(q.Packet))
	var queued []trace.FilterVerdict
	for _, hook := range q.Filters {
		p := atHook(q, in, out, hook, routes)
		p.tracking = tracking
		p.at(priorityFilter)
		drops, walkErr := rules.drops(p)
		err = errors.Join(err, walkErr)
		certain := len(found) == 0
		for _, d := range drops {
			v := d.verdict(hook)
			if d.queue {
				queued = append(queued, v)
				continue
			}
			v.Certain = v.Certain && certain
			found = append(found, v)
		}
		if len(found) == 1 && found[0].Certain {
			break
		}
	}
	if len(found) == 0 && rules.hasBridge() {
		var bridgeErr error
		found, bridgeErr = rules.bridged(q, in, out, routes)
		err = errors.Join(err, bridgeErr)
	}
	return append(found, queued...), socket != nil && socket.changed, err
}

// familyOf is a packet's own family.
func familyOf(p trace.Tuple) family {
	if p.Is6() {
		return familyIP6
	}
	return familyIP
}

// readRuleset reads what the packet of q may meet.
func readRuleset(q trace.Question, until time.Time) (*ruleset, *socket, error) {
	rules := &ruleset{}
	var errs []error
	s, err := openSocket(until)
	if err != nil {
		errs = append(errs, err)
	} else {
		r := &nftReader{socket: s}
		tables, err := r.read()
		rules.tables = tables
		errs = append(errs, err)
	}
	legacy, err := readLegacy(familyOf(q.Packet), q.Filters)
	rules.tables = append(rules.tables, legacy...)
	errs = append(errs, err)
	return rules, s, errors.Join(errs...)
}

// verdict describes a drop for the diagnosis.
func (d drop) verdict(hook trace.NetfilterHook) trace.FilterVerdict {
	t := d.chain.table
	v := trace.FilterVerdict{
		Hook: hook, Backend: t.backend, Family: t.family.String(), Table: t.name, Chain: d.chain.name,
		Reject: d.reject, Certain: d.certain, Queue: d.queue, Packets: d.counter().packets, Counted: d.counter().counted,
	}
	v.Queues, v.Bypass = [2]uint16{d.queues.first, d.queues.last}, d.queues.bypass
	if d.rule == nil {
		v.Policy, v.Rule = true, "policy drop"
		if t.iptables() {
			v.Rule = "-P " + d.chain.name + " DROP"
		}
		return v
	}
	v.Comment, v.Rule = d.rule.comment, d.rule.text(d.chain, deviceName)
	if t.backend != backendLegacy {
		v.Handle = d.rule.handle
	}
	if t.iptables() {
		v.Line = d.rule.line
	}
	return v
}

// withName names a device that the caller has only the index of.
func withName(i trace.Interface, index uint32) trace.Interface {
	if index == 0 || i.Index == index && i.Name != "" {
		return i
	}
	return trace.Interface{Device: trace.Device{Index: index, Name: deviceName(index)}}
}

// DeviceName names a device of the calling thread's namespace; "" when there is none.
func DeviceName(index uint32) string { return deviceName(index) }

// deviceName names a device of the calling thread's namespace; "" when there is none.
func deviceName(index uint32) string {
	i, err := net.InterfaceByIndex(int(index))
	if err != nil {
		return ""
	}
	return i.Name
}
