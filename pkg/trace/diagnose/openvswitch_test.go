package diagnose

import (
	"strings"
	"syscall"
	"testing"

	"github.com/replypath/replypath/pkg/trace"
)

// switchCase is a packet to another MAC that a switch's port took.
func switchCase(symptom trace.Symptom, reason, function string) trace.Case {
	c := dropped(vip4, reason, function)
	c.Symptom, c.Event.OtherHost = symptom, true
	if symptom != trace.SymptomDrop {
		c.Event.Hook = trace.HookReceive
	}
	return c
}

func TestExplainSwitch(t *testing.T) {
	port := trace.SwitchState{Known: true, Datapath: "ovs-system", Port: trace.Device{Index: 7, Name: "pod0"}, Number: 3}
	with := func(change func(*trace.SwitchState)) trace.HostState {
		s := trace.HostState{Onward: found, Switch: port}
		change(&s.Switch)
		return s
	}
	nothing := with(func(*trace.SwitchState) {})
	flow := trace.SwitchFlow{Match: "in_port(3),eth_type(0x0800),tcp(dst=80)", Packets: 2, Certain: true}
	dropping := with(func(s *trace.SwitchState) { s.Dropping = []trace.SwitchFlow{flow} })
	uncertain := with(func(s *trace.SwitchState) { s.Dropping = []trace.SwitchFlow{flow}; s.Dropping[0].Certain = false })
	both := with(func(s *trace.SwitchState) { s.Dropping, s.Passing = []trace.SwitchFlow{flow}, 1 })
	deaf := with(func(s *trace.SwitchState) { s.Deaf = true })
	tests := map[string]struct {
		c     trace.Case
		errno syscall.Errno
		s     trace.HostState
		conf  trace.Confidence // 0: no finding
		cause string
	}{
		"a flow without an output, told by the kernel":   {switchCase(trace.SymptomDrop, "OVS_DROP_LAST_ACTION", "do_execute_actions"), 0, dropping, trace.Certain, "flow in_port(3)"},
		"the same, and the flow is gone by now":          {switchCase(trace.SymptomDrop, "OVS_DROP_LAST_ACTION", "do_execute_actions"), 0, nothing, trace.Certain, "has no output"},
		"an explicit drop":                               {switchCase(trace.SymptomDrop, "OVS_DROP_EXPLICIT", "do_execute_actions"), 0, nothing, trace.Certain, "has no output"},
		"swallowed, and a flow that drops":               {switchCase(trace.SymptomSwallowed, "", ""), 0, dropping, trace.Certain, "flow in_port(3)"},
		"swallowed, and a flow that may be another's":    {switchCase(trace.SymptomSwallowed, "", ""), 0, uncertain, trace.Likely, "flow in_port(3)"},
		"swallowed, and a flow that lets it pass":        {switchCase(trace.SymptomSwallowed, "", ""), 0, both, 0, ""},
		"swallowed, and no flow":                         {switchCase(trace.SymptomSwallowed, "", ""), 0, nothing, 0, ""},
		"swallowed, and no switch":                       {switchCase(trace.SymptomSwallowed, "", ""), 0, trace.HostState{Onward: found}, 0, ""},
		"nobody to ask, by the sockets":                  {switchCase(trace.SymptomDrop, "", "ovs_dp_process_packet"), 0, deaf, trace.Certain, "daemon does not run"},
		"nobody to ask, by the function's own error":     {switchCase(trace.SymptomDrop, "", "ovs_dp_process_packet"), syscall.ECONNREFUSED, nothing, trace.Certain, "daemon does not run"},
		"a full queue":                                   {switchCase(trace.SymptomDrop, "", "ovs_dp_upcall"), syscall.EAGAIN, nothing, trace.Certain, "queue to ovs-vswitchd was full"},
		"not asked, for whatever reason":                 {switchCase(trace.SymptomDrop, "NOT_SPECIFIED", "ovs_dp_process_packet"), 0, nothing, trace.Likely, "could not hand it to ovs-vswitchd"},
		"too big for the port":                           {switchCase(trace.SymptomDrop, "PKT_TOO_BIG", "ovs_vport_send"), 0, nothing, trace.Certain, "MTU of the port"},
		"the port is gone":                               {switchCase(trace.SymptomDrop, "DEV_READY", "do_output"), 0, nothing, trace.Certain, "gone, or has no carrier"},
		"a meter":                                        {switchCase(trace.SymptomDrop, "OVS_DROP_METER", "do_execute_actions"), 0, nothing, trace.Certain, "rate limit"},
		"an action that failed, on a kernel that is mum": {switchCase(trace.SymptomDrop, "", "do_execute_actions"), 0, nothing, trace.Likely, "an action of its flow failed"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			tt.c.Event.Errno = tt.errno
			q, asks := Question(&tt.c)
			if !asks || q.Switched == 0 {
				t.Errorf("no question for the switch: %+v", q)
			}
			f, ok := Explain(&tt.c, &tt.s)
			if want := tt.conf != 0; ok != want {
				t.Fatalf("found %q, want a finding: %t", f.ID, want)
			}
			if !ok {
				return
			}
			if f.ID != "openvswitch-drop" || f.Confidence != tt.conf || !strings.Contains(f.Cause, tt.cause) {
				t.Errorf("%s, %s: %s; want %s, with %q", f.ID, f.Confidence, f.Cause, tt.conf, tt.cause)
			}
			if f.Where.Device != "pod0" || len(f.Fix) == 0 || len(f.Verify) == 0 {
				t.Errorf("at %q, fix %q, verify %q", f.Where.Device, f.Fix, f.Verify)
			}
		})
	}
}

// A SYN for the host itself that a port of a switch took: the silence is its flow's.
func TestExplainSwitchSilence(t *testing.T) {
	c := switchCase(trace.SymptomSilence, "", "")
	c.Direction = trace.Reply
	s := trace.HostState{Onward: found, Switch: trace.SwitchState{Known: true, Dropping: []trace.SwitchFlow{{Match: "in_port(1)", Certain: true}}}}
	f, ok := Explain(&c, &s)
	if !ok || f.ID != "openvswitch-drop" || f.Direction != trace.Request {
		t.Errorf("found %q, direction %s; want openvswitch-drop of the request", f.ID, f.Direction)
	}
}

func TestTraceFlow(t *testing.T) {
	c := switchCase(trace.SymptomDrop, "OVS_DROP_LAST_ACTION", "do_execute_actions")
	c.Event.Tuple = vip6
	s := trace.HostState{Switch: trace.SwitchState{Port: trace.Device{Name: "pod0"}}}
	if got := traceFlow(&c, &s)[0]; !strings.Contains(got, `ovs-appctl ofproto/trace "$(ovs-vsctl port-to-br pod0)" in_port=pod0,tcp6,ipv6_src=`) {
		t.Errorf("fix %q", got)
	}
}
