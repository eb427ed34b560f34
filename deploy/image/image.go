package main

import (
	"archive/tar"
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// contents is what an image is made of.
type contents struct {
	programs []string // static executables; they go to the root directory, the first one is the entrypoint
	version  string
	revision string
	created  time.Time
}

// architectures are the names that OCI images give to ELF machines (GOARCH).
var architectures = map[elf.Machine]string{
	elf.EM_X86_64:  "amd64",
	elf.EM_AARCH64: "arm64",
}

// build returns an image of one layer that holds the programs and nothing else.
func build(c contents) (v1.Image, error) {
	if len(c.programs) == 0 {
		return nil, errors.New("no programs to pack")
	}
	architecture, err := commonArchitecture(c.programs)
	if err != nil {
		return nil, err
	}
	layer, err := programLayer(c.programs, c.created)
	if err != nil {
		return nil, err
	}
	base := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	image, err := mutate.Append(base, mutate.Addendum{
		Layer:   layer,
		History: v1.History{Created: v1.Time{Time: c.created}, CreatedBy: "make image"},
	})
	if err != nil {
		return nil, fmt.Errorf("append layer: %w", err)
	}
	file, err := image.ConfigFile()
	if err != nil {
		return nil, fmt.Errorf("read image configuration: %w", err)
	}
	file = file.DeepCopy()
	file.OS = "linux"
	file.Architecture = architecture
	file.Created = v1.Time{Time: c.created}
	file.Config = v1.Config{
		Entrypoint: []string{"/" + filepath.Base(c.programs[0])},
		Env:        []string{"PATH=/"}, // so that `kubectl exec … -- replypath` finds the CLI
		// Kubernetes gives added capabilities to uid 0 alone: any other uid would need ambient ones, which it does not set.
		User:   "0:0",
		Labels: labels(c),
	}
	image, err = mutate.ConfigFile(image, file)
	if err != nil {
		return nil, fmt.Errorf("set image configuration: %w", err)
	}
	return image, nil
}

// labels returns the annotations that the OCI image specification predefines.
func labels(c contents) map[string]string {
	all := map[string]string{
		"org.opencontainers.image.title":       "replypath",
		"org.opencontainers.image.description": "Shows where a reply was lost, and why",
		"org.opencontainers.image.source":      "https://github.com/replypath/replypath",
		"org.opencontainers.image.licenses":    "Apache-2.0 AND (GPL-2.0-only OR BSD-2-Clause)",
		"org.opencontainers.image.version":     c.version,
		"org.opencontainers.image.revision":    c.revision,
		"org.opencontainers.image.created":     c.created.Format(time.RFC3339),
	}
	for key, value := range all {
		if value == "" {
			delete(all, key)
		}
	}
	return all
}

// programLayer returns a layer with the programs in its root directory.
func programLayer(programs []string, modified time.Time) (v1.Layer, error) {
	var content bytes.Buffer
	archive := tar.NewWriter(&content)
	for _, program := range programs {
		code, err := os.ReadFile(program)
		if err != nil {
			return nil, fmt.Errorf("read program: %w", err)
		}
		if err := addFile(archive, filepath.Base(program), 0o755, modified, code); err != nil {
			return nil, err
		}
	}
	if err := archive.Close(); err != nil {
		return nil, fmt.Errorf("end layer: %w", err)
	}
	open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content.Bytes())), nil }
	layer, err := tarball.LayerFromOpener(open, tarball.WithMediaType(types.OCILayer), tarball.WithCompressedCaching)
	if err != nil {
		return nil, fmt.Errorf("make layer: %w", err)
	}
	return layer, nil
}

// addFile appends one file, owned by root, to a tar archive.
func addFile(archive *tar.Writer, name string, mode int64, modified time.Time, content []byte) error {
	header := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(content)), ModTime: modified}
	if err := archive.WriteHeader(header); err != nil {
		return fmt.Errorf("archive %s: %w", name, err)
	}
	if _, err := archive.Write(content); err != nil {
		return fmt.Errorf("archive %s: %w", name, err)
	}
	return nil
}

// commonArchitecture returns the architecture of programs that share one. It
// refuses those that need a dynamic linker: the image has none.
func commonArchitecture(programs []string) (string, error) {
	var common string
	for _, program := range programs {
		architecture, err := staticArchitecture(program)
		if err != nil {
			return "", fmt.Errorf("inspect program %s: %w", program, err)
		}
		if common == "" {
			common = architecture
		}
		if architecture != common {
			return "", fmt.Errorf("inspect program %s: it is for %s, the first one for %s", program, architecture, common)
		}
	}
	return common, nil
}

func staticArchitecture(program string) (string, error) {
	file, err := elf.Open(program)
	if err != nil {
		return "", err
	}
	defer file.Close()
	for _, segment := range file.Progs {
		if segment.Type == elf.PT_INTERP {
			return "", errors.New("it is linked dynamically: build it with CGO_ENABLED=0")
		}
	}
	architecture, ok := architectures[file.Machine]
	if !ok {
		return "", fmt.Errorf("no image architecture for %s", file.Machine)
	}
	return architecture, nil
}
