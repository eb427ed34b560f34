// Package stream answers clients over gRPC (api/trace/v1) from the agent's
// recorder and its live feed, and guards the sockets that it listens on.
package stream

import (
	"context"
	"time"

	"github.com/replypath/replypath/internal/recorder"
)

// Source is the agent as its clients see it.
type Source interface {
	// Settle returns when the recorder knows what the kernel had told at the
	// time of the call: events are read, and open cases decided.
	Settle(ctx context.Context) error
	// Recorder holds the findings and paths.
	Recorder() *recorder.Recorder
	// Losses says what was lost since a time, by cause (LossLog does); the zero time means since start.
	Losses(since time.Time) []Loss
	// Status says what the agent can see.
	Status() Status
}

// Loss counts events or answers that were lost for one cause.
type Loss struct {
	Cause string
	Count uint64
}

// Status is what one agent says of itself.
type Status struct {
	Node    string
	Version string
	Kernel  string // release, as `uname -r` prints it
	Tier    string // "base" or "plus"
	Hooks   []HookStatus
	Events  uint64 // read from the kernel since start
	Started time.Time
	Live    int // paths that are not done yet
}

// HookStatus says whether a hook is attached.
type HookStatus struct {
	Name   string
	State  string // "attached", "refused", "absent" or "paused"
	Reason string // why it is not attached
	Means  string // how it is attached: "tp_btf", "raw_tp", "fexit" or "kprobe"
}
