package recorder

import (
	"container/list"
	"unsafe"

	"github.com/replypath/replypath/pkg/trace"
)

// Sizes are estimates of live memory in bytes: the values, what their slices
// and strings refer to (a string that several share is counted for each), the
// list and map entries, and an eighth for the allocator's size classes.

// mapSlot is what a map holds of an entry besides key and value, at its usual load.
const mapSlot = 2

func withOverhead(bytes int) int { return bytes + bytes/8 }

func pathEntryBytes(p *trace.Path) int {
	fixed := sizeof[pathEntry]() + sizeof[list.Element]() + mapSlot*(sizeof[pathKey]()+sizeof[*list.Element]())
	return withOverhead(fixed + pathBytes(p))
}

// pathBytes counts what a path refers to, not the path itself.
func pathBytes(p *trace.Path) int {
	return len(p.Process.Comm) + hopsBytes(p.Request) + hopsBytes(p.Reply)
}

func hopsBytes(hops []trace.Hop) int {
	bytes := cap(hops) * sizeof[trace.Hop]()
	for i := range hops {
		bytes += placeBytes(&hops[i].Place) + len(hops[i].In.Name) + len(hops[i].Out.Name)
	}
	return bytes
}

func placeBytes(p *trace.Place) int { return len(p.Name) + len(p.Workload) }

// findingBytes counts what a finding refers to, not the finding itself.
func findingBytes(f *trace.Finding) int {
	bytes := len(f.ID) + len(f.Fault) + len(f.Summary) + len(f.Cause) + placeBytes(&f.Where.Place) +
		len(f.Where.Node) + len(f.Where.Device) + len(f.Where.Hook) + pathBytes(&f.Path) +
		cap(f.Connections)*sizeof[trace.Connection]() + cap(f.Evidence)*sizeof[trace.Evidence]() +
		(cap(f.Fix)+cap(f.Verify))*sizeof[string]()
	for _, s := range f.Fix {
		bytes += len(s)
	}
	for _, s := range f.Verify {
		bytes += len(s)
	}
	for i := range f.Evidence {
		bytes += len(f.Evidence[i].Text) + len(f.Evidence[i].Series)
	}
	return bytes
}

// recordBytes counts a record without its members.
func recordBytes(r *record) int {
	fixed := sizeof[record]() + sizeof[list.Element]() + mapSlot*(sizeof[trace.FaultKey]()+sizeof[*record]())
	return withOverhead(fixed + findingBytes(&r.finding))
}

func memberBytes(m *member) int {
	bytes := 2*sizeof[member]() + len(m.process.Comm) + cap(m.tuples)*sizeof[trace.Tuple]() // twice: the slice grows by doubling
	if m.report != nil {
		bytes += sizeof[trace.Finding]() + findingBytes(m.report)
	}
	return withOverhead(bytes)
}

func sizeof[T any]() int {
	var v T
	return int(unsafe.Sizeof(v))
}
