package diagnose

import (
	"strings"
	"testing"

	"github.com/replypath/replypath/pkg/trace"
)

// explainedElsewhere are the rules whose cases are in tests of their own.
var explainedElsewhere = map[string]bool{
	"xdp-drop": true, "tc-drop": true, "conntrack-full": true, "conntrack-invalid-drop": true,
	"socket-buffer-full": true, "tunnel-mismatch": true, "openvswitch-drop": true,
	"loopback-down": true, "loopback-source-leaked": true, "redirect-loop": true, "redirect-target-not-listening": true, "route-localnet-disabled": true,
	"redirect-bypassed-ipv6": true, "redirect-missing": true, "loopback-blocked": true,
}

func attached(point trace.AttachPoint, change func(*trace.Attachment)) trace.Attachment {
	a := trace.Attachment{Point: point, Device: eth0, Program: 7, Name: "dropper", Tag: "abc"}
	if change != nil {
		change(&a)
	}
	return a
}

func gact(pref uint16, dropped uint64) trace.Attachment {
	return trace.Attachment{
		Point: trace.TCIngress, Device: eth0, Kind: "flower", Priority: pref, Protocol: 0x0800, Handle: 1, Action: "gact", Dropped: dropped, Counted: true,
	}
}

func TestExplainAttachments(t *testing.T) {
	type list = []trace.Attachment
	filter := func(a *trace.Attachment) { a.Kind, a.Priority, a.Protocol, a.Handle = "bpf", 3, 3, 1 }
	linked := func(a *trace.Attachment) { a.Link = 12 }
	tests := map[string]struct {
		c    trace.Case
		s    trace.HostState
		id   string
		conf trace.Confidence
		fix  string // start of the first command
	}{
		"XDP in the driver": {dropped(vip4, "NOT_SPECIFIED", "veth_xdp_rcv_skb"), trace.HostState{Attachments: list{attached(trace.XDPNative, nil)}},
			"xdp-drop", trace.Certain, "ip netns exec be ip link set dev eth0 xdpdrv off "},
		"XDP in the stack, by a link": {dropped(vip6, "XDP", "do_xdp_generic"), trace.HostState{Attachments: list{attached(trace.XDPGeneric, linked)}},
			"xdp-drop", trace.Certain, "ip netns exec be bpftool link detach id 12 "},
		"a frame that XDP's driver could not take": {dropped(vip4, "NOT_SPECIFIED", "veth_xdp_rcv_skb"), trace.HostState{}, "", 0, ""},
		"tc program on the way in": {dropped(vip4, "TC_INGRESS", "__netif_receive_skb_core.constprop.0"), trace.HostState{Attachments: list{attached(trace.TCIngress, filter)}},
			"tc-drop", trace.Certain, "ip netns exec be tc filter del dev eth0 ingress pref 3 protocol all handle 0x1 bpf "},
		"tc program on the way out, XDP too": {dropped(vip4, "TC_EGRESS", "__dev_queue_xmit"), trace.HostState{Attachments: list{attached(trace.XDPNative, nil), attached(trace.TCEgress, filter)}},
			"tc-drop", trace.Certain, "ip netns exec be tc filter del dev eth0 egress pref 3"},
		"tcx": {dropped(vip4, "TC_INGRESS", "sch_handle_ingress"), trace.HostState{Attachments: list{attached(trace.TCXIngress, nil)}},
			"tc-drop", trace.Certain, "ip netns exec be bpftool net detach tcx_ingress id 7 dev eth0 "},
		"of several filters the one that has dropped": {dropped(vip4, "TC_INGRESS", "sch_handle_ingress"), trace.HostState{Attachments: list{gact(1, 0), gact(2, 5)}},
			"tc-drop", trace.Certain, "ip netns exec be tc filter del dev eth0 ingress pref 2 protocol ip handle 0x1 flower "},
		"several programs": {dropped(vip4, "TC_INGRESS", "sch_handle_ingress"), trace.HostState{Attachments: list{attached(trace.TCXIngress, nil), attached(trace.TCIngress, filter)}},
			"tc-drop", trace.Likely, "# ip netns exec be bpftool net detach tcx_ingress"},
		"a program that is gone": {dropped(vip4, "TC_INGRESS", "sch_handle_ingress"), trace.HostState{},
			"tc-drop", trace.Likely, "# ip netns exec be bpftool net show dev eth0 "},
		"no reason, but a program": {dropped(vip4, "", "__netif_receive_skb_core"), trace.HostState{Attachments: list{attached(trace.TCIngress, filter)}},
			"tc-drop", trace.Certain, "ip netns exec be tc filter del"},
		"no reason, no program": {dropped(vip4, "", "__dev_queue_xmit"), trace.HostState{}, "", 0, ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			tt.s.Onward = found
			f, ok := Explain(&tt.c, &tt.s)
			if f.ID != tt.id || ok != (tt.id != "") {
				t.Fatalf("found %q, want %q", f.ID, tt.id)
			}
			if !ok {
				return
			}
			if f.Confidence != tt.conf || !strings.HasPrefix(f.Fix[0], tt.fix) || f.Where.Device != "eth0" {
				t.Errorf("%s, device %s, fix %q; want %s, %q", f.Confidence, f.Where.Device, f.Fix[0], tt.conf, tt.fix)
			}
			checkComplete(t, &f)
		})
	}
}

// A frame that was flooded to a device and dropped there is missed by nobody; at a bridge's port it was on its way.
func TestExplainFloodedFrames(t *testing.T) {
	c := dropped(vip4, "TC_INGRESS", "sch_handle_ingress")
	c.Event.OtherHost = true
	s := trace.HostState{Onward: found, Attachments: []trace.Attachment{attached(trace.TCXIngress, nil)}, In: trace.Interface{Device: eth0}}
	if f, ok := Explain(&c, &s); ok {
		t.Errorf("found %s", f.ID)
	}
	s.In.Device = trace.Device{Index: 9, Name: "br0"}
	if f, _ := Explain(&c, &s); f.ID != "tc-drop" {
		t.Errorf("found %q at a bridge's port", f.ID)
	}
}
