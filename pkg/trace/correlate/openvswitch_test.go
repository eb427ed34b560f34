package correlate

import (
	"testing"
	"time"

	"github.com/replypath/replypath/pkg/trace"
)

func TestSwitchDrop(t *testing.T) {
	syn := tcp("10.2.0.7:40000", "10.2.0.20:80")
	const reason, function = "OVS_DROP_LAST_ACTION", "do_execute_actions"
	tests := map[string]struct {
		play    func(*scene)
		want    int
		symptom trace.Symptom
		d       trace.Direction
	}{
		"a frame that was flooded to a switch, once": {func(s *scene) {
			s.syn(syn, 7).tx(client, 0, 2).otherHost().rx(bridge, 3).drop(bridge, 3, reason, function)
		}, 0, 0, 0},
		"dropped again when it is sent again": {func(s *scene) {
			s.syn(syn, 7).tx(client, 0, 2).otherHost().rx(bridge, 3).drop(bridge, 3, reason, function)
			s.wait(time.Second)
			s.syn(syn, 7).tx(client, 0, 2).otherHost().rx(bridge, 3).drop(bridge, 3, reason, function)
		}, 1, trace.SymptomDrop, trace.Request},
		"a packet of the host's own": {func(s *scene) {
			for range 2 {
				s.syn(syn, 7).tx(bridge, 0, 2).drop(bridge, 0, "", "ovs_dp_process_packet")
				s.wait(time.Second)
			}
		}, 1, trace.SymptomDrop, trace.Request},
		"one of several outputs": {func(s *scene) {
			for range 3 {
				s.syn(syn, 7).tx(client, 0, 2).otherHost().rx(bridge, 3).drop(bridge, 3, "DEV_READY", function).tx(bridge, 3, 4)
				s.wait(time.Second)
			}
		}, 0, 0, 0},
		"the only output": {func(s *scene) {
			for range 2 {
				s.syn(syn, 7).tx(client, 0, 2).otherHost().rx(bridge, 3).drop(bridge, 3, "DEV_READY", function)
				s.wait(time.Second)
			}
		}, 1, trace.SymptomDrop, trace.Request},
		"data for a mirror": {func(s *scene) {
			for range 9 {
				s.send(syn, trace.ACK, 8, 0).drop(bridge, 3, "DEV_READY", function)
			}
		}, 0, 0, 0},
		"a probe of the daemon": {func(s *scene) {
			for range 3 {
				s.datagram(trace.Tuple{Protocol: trace.UDP, Src: tcp("127.255.255.255:0", "10.2.0.7:1").Src, Dst: tcp("127.255.255.255:0", "10.2.0.7:1").Src}).drop(bridge, 3, reason, function)
			}
		}, 0, 0, 0},
		"swallowed without a word": {func(s *scene) {
			s.syn(syn, 7).tx(client, 0, 2).otherHost().rx(bridge, 3)
			s.wait(time.Second)
			s.syn(syn, 7).tx(client, 0, 2).otherHost().rx(bridge, 3)
		}, 1, trace.SymptomSwallowed, trace.Request},
		"the reply swallowed": {func(s *scene) {
			for range 2 {
				s.syn(syn, 7).tx(client, 0, 2).otherHost().rx(bridge, 3).tx(bridge, 3, 4)
				s.syn(syn, 7).rx(backend, 2)
				s.synack(syn.Reverse(), 7).tx(backend, 0, 2).otherHost().rx(bridge, 4)
				s.wait(time.Second)
			}
		}, 2, trace.SymptomSwallowed, trace.Reply}, // and that it vanished
		"bridged, and then lost elsewhere": {func(s *scene) {
			for range 2 {
				s.syn(syn, 7).tx(client, 0, 2).otherHost().rx(bridge, 3).tx(bridge, 3, 4)
				s.wait(time.Second)
			}
		}, 1, trace.SymptomStray, trace.Request},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s := newScene(t, Config{})
			tt.play(s)
			cases := s.cases(tt.want)
			for i := range cases {
				if c := &cases[i]; c.Symptom == tt.symptom && c.Direction == tt.d && (c.Event.Netns == bridge || c.Symptom == trace.SymptomStray) {
					return
				}
			}
			if tt.want > 0 {
				t.Errorf("no case of a %s of the %s among %v", tt.symptom, tt.d, cases)
			}
		})
	}
}

// What a switch in a program or netfilter drops is not its kernel datapath's.
func TestBySwitch(t *testing.T) {
	for function, want := range map[string]bool{
		"ovs_vport_send": true, "do_execute_actions": true, "do_output.isra.0": true, "ovs_dp_process_packet": true,
		"nft_do_chain": false, "__dev_queue_xmit": false, "do_xdp_generic": false, "": false,
	} {
		ev := trace.Event{Hook: trace.HookDrop, Symbol: function}
		if ev.BySwitch() != want {
			t.Errorf("%s: by a switch %t, want %t", function, !want, want)
		}
	}
}
