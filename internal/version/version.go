// Package version says which replypath this is.
package version

import (
	"fmt"
	"runtime"
	"runtime/debug"
)

// version is set by the build: -ldflags "-X github.com/replypath/replypath/internal/version.version=v1.2.3".
// Without it the module's version is told, as `go install` knows it.
var version string

// String returns the version alone: "v1.2.3".
func String() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}

// Line returns version, commit, Go version and platform in one line.
func Line() string {
	return fmt.Sprintf("replypath %s (commit %s, %s, %s/%s)", String(), commit(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
}

func commit() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	return commitOf(info.Settings)
}

// commitDigits are as many as the Go toolchain shows.
const commitDigits = 12

func commitOf(settings []debug.BuildSetting) string {
	commit, modified := "unknown", ""
	for _, s := range settings {
		switch s.Key {
		case "vcs.revision":
			commit = s.Value[:min(commitDigits, len(s.Value))]
		case "vcs.modified":
			if s.Value == "true" {
				modified = ", modified"
			}
		}
	}
	return commit + modified
}
