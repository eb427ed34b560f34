package netstate

import (
	"encoding/binary"
	"testing"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/replypath/replypath/pkg/trace"
)

// tcMessage is a filter with priority 3 for IPv4, handle 1.
func tcMessage(kind string, options []byte) []byte {
	header := make([]byte, sizeofTCMessage)
	binary.NativeEndian.PutUint32(header[8:], 1)
	binary.NativeEndian.PutUint32(header[16:], 3<<16|uint32(nl.Swap16(unix.ETH_P_IP)))
	return message(header, attr(tcKind, nl.ZeroTerminated(kind)), attr(tcOptions, options))
}

// gactOf is the list of one action of kind gact, with six drops on its counter.
func gactOf(action int32) []byte {
	parameters := make([]byte, 20)
	binary.NativeEndian.PutUint32(parameters[8:], uint32(action))
	queue := make([]byte, 20)
	binary.NativeEndian.PutUint32(queue[8:], 6)
	one := message(nil, attr(actionKind, nl.ZeroTerminated("gact")), attr(actionStatistics, message(nil, attr(statisticsQueue, queue))),
		attr(actionOptions, message(nil, attr(2, parameters))))
	return message(nil, attr(1, one))
}

func TestParseFilter(t *testing.T) {
	gact := trace.Attachment{Kind: "flower", Priority: 3, Protocol: unix.ETH_P_IP, Handle: 1, Action: "gact", Dropped: 6, Counted: true}
	program := trace.Attachment{Kind: "bpf", Priority: 3, Protocol: unix.ETH_P_IP, Handle: 1, Program: 77, Name: "x"}
	for name, tt := range map[string]struct {
		message []byte
		want    trace.Attachment
		drops   bool
	}{
		"flower that drops":   {tcMessage("flower", message(nil, attr(3, gactOf(actionShot)))), gact, true},
		"flower that accepts": {tcMessage("flower", message(nil, attr(3, gactOf(0)))), trace.Attachment{}, false},
		"program that decides": {tcMessage("bpf", message(nil, attr(bpfFlags, nl.Uint32Attr(1)), attr(bpfID, nl.Uint32Attr(77)), attr(bpfName, nl.ZeroTerminated("x")))),
			program, true},
		"program that classifies": {tcMessage("bpf", message(nil, attr(bpfID, nl.Uint32Attr(77)))), trace.Attachment{}, false},
		"u32 that polices":        {tcMessage("u32", message(nil, attr(6, []byte{1, 2, 3, 4}))), trace.Attachment{Kind: "u32", Priority: 3, Protocol: unix.ETH_P_IP, Handle: 1, Action: "police"}, true},
		"truncated":               {make([]byte, sizeofTCMessage-1), trace.Attachment{}, false},
	} {
		got, drops := parseFilter(tt.message)
		if drops != tt.drops || drops && got != tt.want {
			t.Errorf("%s: %t, %+v; want %+v", name, drops, got, tt.want)
		}
	}
}

func TestParseXDP(t *testing.T) {
	for name, tt := range map[string]struct {
		attribute []byte
		want      xdpPrograms
	}{
		"native":      {message(nil, attr(xdpAttached, []byte{1}), attr(xdpProgram, nl.Uint32Attr(5)), attr(xdpNative, nl.Uint32Attr(5))), xdpPrograms{native: 5}},
		"generic":     {message(nil, attr(xdpAttached, []byte{2}), attr(xdpProgram, nl.Uint32Attr(6)), attr(xdpGeneric, nl.Uint32Attr(6))), xdpPrograms{generic: 6}},
		"old kernels": {message(nil, attr(xdpAttached, []byte{2}), attr(xdpProgram, nl.Uint32Attr(6))), xdpPrograms{generic: 6}},
	} {
		if got := parseXDP(tt.attribute); got != tt.want {
			t.Errorf("%s: %+v, want %+v", name, got, tt.want)
		}
	}
	if got := parseXDP(message(nil, attr(xdpAttached, []byte{0}))); got.attachments() != nil {
		t.Errorf("nothing attached: %+v", got)
	}
}
