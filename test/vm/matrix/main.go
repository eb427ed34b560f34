// Command matrix writes docs/kernels.md from what test/vm/run found out about
// each kernel. Kernels that were not run keep their columns.
//
//	matrix [-check] [-results DIR] [-page FILE] KERNEL...
//
// With -check it writes nothing, and fails when what was found differs from the page.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "matrix:", err)
		os.Exit(1)
	}
}

func run() error {
	results := flag.String("results", "build/vm", "directory with a directory for each kernel")
	file := flag.String("page", "docs/kernels.md", "page to write")
	check := flag.Bool("check", false, "compare with the page instead of writing it")
	flag.Parse()
	if flag.NArg() == 0 {
		return errors.New("name the kernels that were run")
	}
	text, err := os.ReadFile(*file)
	if err != nil && (*check || !errors.Is(err, fs.ErrNotExist)) {
		return fmt.Errorf("read page: %w", err)
	}
	committed, err := parsePage(string(text))
	if err != nil {
		return fmt.Errorf("read %s: %w", *file, err)
	}
	found := newPage()
	for _, kernel := range flag.Args() {
		r, err := readResults(filepath.Join(*results, kernel))
		if err != nil {
			return fmt.Errorf("read results of kernel %s: %w", kernel, err)
		}
		if err := found.add(kernel, r); err != nil {
			return fmt.Errorf("kernel %s: %w", kernel, err)
		}
	}
	if *check {
		return found.compare(committed)
	}
	committed.replace(found)
	return os.WriteFile(*file, []byte(committed.String()), 0o644)
}
