package agent

import (
	"context"
	"log/slog"
	"time"

	"github.com/replypath/replypath/internal/netstate"
	"github.com/replypath/replypath/internal/recorder"
	"github.com/replypath/replypath/pkg/trace"
)

// Foretell explains a case that has not happened (trace.Case.Asked) just as the
// agent would explain it once it has: the same suspects first, the same
// questions to the same hosts, the same rules.
func Foretell(ctx context.Context, node string, reader *netstate.Reader, places *netstate.Directory, c *trace.Case) (trace.Finding, bool) {
	kept := recorder.New(recorder.Config{})
	newInvestigator(node, reader, places, kept, slog.New(slog.DiscardHandler)).investigate(ctx, c)
	for _, f := range kept.Findings(time.Time{}) {
		f.Count, f.Connections, f.Omitted = 0, nil, 0 // nobody has met it yet
		return f, true
	}
	return trace.Finding{}, false
}
