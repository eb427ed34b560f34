// Package docs checks that architecture.md tells the truth about the tree.
package docs

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const module = "github.com/replypath/replypath/"

// folders returns the first column of the table of folders.
func folders(t *testing.T) []string {
	t.Helper()
	text, err := os.ReadFile("architecture.md")
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, row := range regexp.MustCompile("(?m)^\\| (`.*?) \\|").FindAllStringSubmatch(string(text), -1) {
		for _, folder := range regexp.MustCompile("`([^`]+)/`").FindAllStringSubmatch(row[1], -1) {
			all = append(all, folder[1])
		}
	}
	slices.Sort(all)
	return all
}

func TestEveryFolderIsDescribed(t *testing.T) {
	var present []string
	for _, pattern := range []string{"bpf", "api/*/*", "pkg/*", "pkg/trace/*", "internal/*", "cmd/*", "deploy"} {
		paths, err := filepath.Glob("../" + pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			if info, err := os.Stat(path); err == nil && info.IsDir() && filepath.Base(path) != "testdata" {
				present = append(present, strings.TrimPrefix(path, "../"))
			}
		}
	}
	slices.Sort(present)
	if diff := cmp.Diff(present, folders(t)); diff != "" {
		t.Errorf("architecture.md (-tree +document):\n%s", diff)
	}
}

// The diagnosis runs anywhere: no kernel, no Kubernetes, no gRPC below pkg/trace.
func TestVocabularyIsPure(t *testing.T) {
	err := filepath.WalkDir("../pkg/trace", func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, spec := range file.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			first, _, _ := strings.Cut(imported, "/")
			standard := !strings.Contains(first, ".")
			isParser := imported == "github.com/miekg/dns" && strings.Contains(path, "pkg/trace/dns/") // of which it uses the parsing alone
			if !standard && !isParser && !strings.HasPrefix(imported, module+"pkg/trace") {
				t.Errorf("%s imports %s", path, imported)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
