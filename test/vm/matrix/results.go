package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// results are what test/vm/suite found out about one kernel.
type results struct {
	release    string
	tier       string
	labs       []labResult
	baseLabs   []labResult // with --tier base
	hooks      []hookResult
	conditions []conditionResult
}

// labResult is a line of `lab run --all -o json`.
type labResult struct {
	Lab        string `json:"lab"`
	Expected   string `json:"expected"`
	Got        string `json:"got"`
	OK         bool   `json:"ok"`
	Finding    string `json:"finding"`    // what it must give; "" when it is healthy
	Confidence string `json:"confidence"` // of what it gave
}

// hookResult is a hook in `status -o json`.
type hookResult struct {
	Name   string `json:"name"`
	State  string `json:"state"`
	Reason string `json:"reason"`
	Means  string `json:"means"`
}

// conditionResult is what the tests of package vm noted.
type conditionResult struct {
	Name  string `json:"name"`
	Works bool   `json:"works"`
	Says  string `json:"says"`
}

// line is one line of any of the files.
type line struct {
	Lab  *labResult `json:"lab"`
	Node *struct {
		Tier  string       `json:"tier"`
		Hooks []hookResult `json:"hooks"`
	} `json:"node"`
	Condition *conditionResult `json:"condition"`
}

// arm64 ends the names of kernels for that processor.
const arm64 = "-arm64"

// readResults reads a kernel's directory.
func readResults(dir string) (*results, error) {
	release, err := os.ReadFile(filepath.Join(dir, "release"))
	if err != nil {
		return nil, err
	}
	r := &results{release: strings.TrimSpace(string(release))}
	files := map[string]*[]labResult{"labs.json": &r.labs, "labs-base.json": &r.baseLabs, "status.json": nil}
	needsConditions := !strings.HasSuffix(dir, arm64) // what sets conditions up does not run there
	if needsConditions {
		files["conditions.json"] = nil
	}
	for name, labs := range files {
		if err := r.readLines(filepath.Join(dir, name), labs); err != nil {
			return nil, err
		}
	}
	if len(r.labs) == 0 || len(r.baseLabs) == 0 || len(r.hooks) == 0 || needsConditions && len(r.conditions) == 0 {
		return nil, fmt.Errorf("incomplete: %d labs, %d in the base tier, %d hooks, %d conditions", len(r.labs), len(r.baseLabs), len(r.hooks), len(r.conditions))
	}
	return r, nil
}

// readLines reads a file of JSON lines; labs go to a list of their own.
func (r *results) readLines(path string, labs *[]labResult) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	scanner := bufio.NewScanner(file)
	scanner.Buffer(nil, 1<<20)
	for scanner.Scan() {
		var l line
		if err := json.Unmarshal(scanner.Bytes(), &l); err != nil {
			return fmt.Errorf("read %s: %w", path, err)
		}
		switch {
		case l.Lab != nil && labs != nil:
			*labs = append(*labs, *l.Lab)
		case l.Node != nil:
			r.tier, r.hooks = l.Node.Tier, l.Node.Hooks
		case l.Condition != nil:
			r.conditions = append(r.conditions, *l.Condition)
		}
	}
	return scanner.Err()
}
