package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/replypath/replypath/pkg/trace/diagnose"
)

// add fills a kernel's column with what was found out about it.
func (p *page) add(kernel string, r *results) error {
	p.kernels = append(p.kernels, kernel)
	p.tables[tableKernels].set(rowRelease, kernel, cell{text: r.release})
	p.tables[tableKernels].set("tier", kernel, cell{text: r.tier})
	if err := p.tables[tableFindings].addLabs(kernel, r.labs); err != nil {
		return err
	}
	if err := p.tables[tableBase].addLabs(kernel, r.baseLabs); err != nil {
		return fmt.Errorf("base tier: %w", err)
	}
	for _, h := range r.hooks {
		p.tables[tableHooks].set("`"+h.Name+"`", kernel, h.cell())
	}
	for _, c := range r.conditions {
		p.tables[tableConditions].set(c.Name, kernel, c.cell())
	}
	slices.SortFunc(p.tables[tableConditions], func(a, b row) int { return strings.Compare(a.name, b.name) })
	return nil
}

func (h hookResult) cell() cell {
	if h.State == "attached" {
		return cell{text: "attached, " + h.Means}
	}
	return cell{h.State, h.Reason}
}

func (c conditionResult) cell() cell {
	if c.Works {
		return cell{text: "works"}
	}
	return cell{"says", c.Says}
}

// healthy is the row of labs without a fault.
const healthy = "healthy networks"

// confidences of findings, the lowest first.
var confidences = []string{"possible", "likely", certain}

const certain = "certain"

// addLabs adds a row for each finding, in the order of docs/findings.md, and one
// for healthy labs. A lab that gave something else is an error: that is no result.
func (t *table) addLabs(kernel string, labs []labResult) error {
	lowest, silent, err := sum(labs)
	if err != nil {
		return err
	}
	for _, rule := range diagnose.Rules() {
		if confidence, ok := lowest[rule.ID]; ok {
			note := why[rule.ID]
			if confidence == certain {
				note = ""
			} else if note == "" {
				return fmt.Errorf("finding %s is only %s: say why in the table of reasons (test/vm/matrix)", rule.ID, confidence)
			}
			t.set(fmt.Sprintf("[`%s`](findings.md#%s)", rule.ID, rule.ID), kernel, cell{confidence, note})
			delete(lowest, rule.ID)
		}
	}
	for id := range lowest {
		return fmt.Errorf("finding %s has no rule", id)
	}
	if len(labs) > 0 {
		t.set(healthy, kernel, cell{text: fmt.Sprintf("%d of %d silent", silent, silent)})
	}
	return nil
}

// sum returns the lowest confidence of each finding, and how many labs are healthy.
func sum(labs []labResult) (lowest map[string]string, silent int, err error) {
	lowest = make(map[string]string)
	for _, l := range labs {
		switch {
		case !l.OK:
			return nil, 0, fmt.Errorf("lab %s: expected %s, got %s", l.Lab, l.Expected, l.Got)
		case l.Finding == "":
			silent++
			continue
		case !slices.Contains(confidences, l.Confidence):
			return nil, 0, fmt.Errorf("lab %s: confidence %q", l.Lab, l.Confidence)
		}
		if was, ok := lowest[l.Finding]; !ok || slices.Index(confidences, l.Confidence) < slices.Index(confidences, was) {
			lowest[l.Finding] = l.Confidence
		}
	}
	return lowest, silent, nil
}

// why says, for a finding, what keeps it below certain where it is.
var why = map[string]string{
	"conntrack-entry-lost":    "on every kernel: that the entry is gone is inferred from the packets, the table is not read",
	"neighbor-unresolved":     "on every kernel: that a neighbour entry leads to the wrong machine is inferred, as a frame for a MAC that is not there leaves no trace",
	"redirect-missing":        "on every kernel: that there should be rules where there are none is inferred from the proxy's sockets",
	"reply-no-route":          "on every kernel: that the answering host chose the wrong router is inferred from the way that the request took",
	"reply-wrong-source":      "on every kernel: where no socket refuses the answer, that the client's program does is inferred from its repeated question, and a source that changes after the handshake from the reset",
	"socket-buffer-full":      "this kernel gives no reason for a drop, which came with 5.17: that the buffer was full follows from the socket's own counter",
	"vip-not-local":           "on every kernel: that a host which forwards should own the address is inferred from the route that leads it there, and the socket that listens",
	"route-localnet-disabled": "this kernel gives the drop no reason of its own (IP_LOCALNET): that it was for an address of loopback follows from the packet",
	"routing-loop":            "on every kernel: which of the hosts of a circle has the wrong route can be a matter of what is meant",
	"rp-filter-drop":          "this kernel gives no reason for a drop, which came with 5.17: that it was rp_filter follows from the host's settings and routes",
}
