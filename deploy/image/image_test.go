package main

import (
	"archive/tar"
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

const (
	imageName = "replypath.test/agent:v1.2.3"
	created   = "1700000000" // 2023-11-14T22:13:20Z
)

// program writes an ELF file without code, as a compiler for that machine would
// head it: with a dynamic linker or without.
func program(t *testing.T, name string, machine elf.Machine, segments ...elf.ProgType) string {
	t.Helper()
	headerSize, segmentSize := binary.Size(elf.Header64{}), binary.Size(elf.Prog64{})
	header := elf.Header64{
		Ident: [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_EXEC), Machine: uint16(machine), Version: uint32(elf.EV_CURRENT),
		Phoff: uint64(headerSize), Ehsize: uint16(headerSize), Phentsize: uint16(segmentSize), Phnum: uint16(len(segments)),
	}
	var content bytes.Buffer
	if err := binary.Write(&content, binary.LittleEndian, header); err != nil {
		t.Fatal(err)
	}
	for _, segment := range segments {
		if err := binary.Write(&content, binary.LittleEndian, elf.Prog64{Type: uint32(segment)}); err != nil {
			t.Fatal(err)
		}
	}
	content.WriteString(name)
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, content.Bytes(), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

// pack runs the command and returns the archive that it wrote.
func pack(t *testing.T, programs ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image.tar")
	args := []string{"-o", path, "-name", imageName, "-version", "v1.2.3", "-revision", "abc", "-time", created}
	if err := run(append(args, programs...), io.Discard, io.Discard); err != nil {
		t.Fatal(err)
	}
	return path
}

func readImages(t *testing.T, archive string) (oci, docker v1.Image) {
	t.Helper()
	directory := t.TempDir()
	unpack(t, archive, directory)
	index, err := layout.ImageIndexFromPath(directory)
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	if len(manifest.Manifests) != 1 {
		t.Fatalf("index lists %d images, want 1", len(manifest.Manifests))
	}
	entry := manifest.Manifests[0]
	if got := entry.Annotations[annotationName]; got != imageName {
		t.Errorf("containerd would name it %q, want %q", got, imageName)
	}
	if oci, err = index.Image(entry.Digest); err != nil {
		t.Fatal(err)
	}
	tag, err := name.NewTag(imageName)
	if err != nil {
		t.Fatal(err)
	}
	if docker, err = tarball.ImageFromPath(archive, &tag); err != nil {
		t.Fatal(err)
	}
	return oci, docker
}

func unpack(t *testing.T, archive, directory string) {
	t.Helper()
	file, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for reader := tar.NewReader(file); ; {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(reader)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(directory, header.Name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestArchiveIsBothOCILayoutAndDockerArchive(t *testing.T) {
	agent := program(t, "replypath-agent", elf.EM_AARCH64, elf.PT_LOAD)
	cli := program(t, "replypath", elf.EM_AARCH64, elf.PT_LOAD)
	oci, docker := readImages(t, pack(t, agent, cli))

	for format, image := range map[string]v1.Image{"oci": oci, "docker": docker} {
		if err := validate.Image(image); err != nil {
			t.Errorf("%s: %v", format, err)
		}
	}
	ociConfig, err := oci.ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	dockerConfig, err := docker.ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	if ociConfig != dockerConfig {
		t.Errorf("the two formats name different images: %s and %s", ociConfig, dockerConfig)
	}

	file, err := oci.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if got, want := file.OS+"/"+file.Architecture, "linux/arm64"; got != want {
		t.Errorf("platform is %s, want %s", got, want)
	}
	if diff := cmp.Diff([]string{"/replypath-agent"}, file.Config.Entrypoint); diff != "" {
		t.Errorf("entrypoint (-want +got):\n%s", diff)
	}
	if got := file.Config.Labels["org.opencontainers.image.revision"]; got != "abc" {
		t.Errorf("revision label is %q, want abc", got)
	}
}

func TestLayerHoldsTheProgramsAlone(t *testing.T) {
	agent := program(t, "replypath-agent", elf.EM_X86_64)
	cli := program(t, "replypath", elf.EM_X86_64)
	image, _ := readImages(t, pack(t, agent, cli))
	layers, err := image.Layers()
	if err != nil {
		t.Fatal(err)
	}
	if len(layers) != 1 {
		t.Fatalf("image has %d layers, want 1", len(layers))
	}
	content, err := layers[0].Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer content.Close()

	type entry struct {
		Name     string
		Mode     int64
		UID      int
		Modified time.Time
		Content  string
	}
	var got []entry
	reader := tar.NewReader(content)
	for {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		code, err := io.ReadAll(reader)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, entry{header.Name, header.Mode, header.Uid, header.ModTime.UTC(), string(code)})
	}
	modified := time.Unix(1700000000, 0).UTC()
	want := []entry{
		{"replypath-agent", 0o755, 0, modified, read(t, agent)},
		{"replypath", 0o755, 0, modified, read(t, cli)},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("layer (-want +got):\n%s", diff)
	}
}

func TestSameInputsGiveTheSameBytes(t *testing.T) {
	agent := program(t, "replypath-agent", elf.EM_X86_64)
	first := pack(t, agent)
	later := time.Now().Add(time.Hour)
	if err := os.Chtimes(agent, later, later); err != nil {
		t.Fatal(err)
	}
	if read(t, first) != read(t, pack(t, agent)) {
		t.Error("two archives of the same program differ")
	}
}

func TestRefusals(t *testing.T) {
	static := program(t, "static", elf.EM_X86_64)
	tests := []struct {
		name     string
		image    string
		programs []string
		want     string
	}{
		{"no program", imageName, nil, "no programs"},
		{"missing program", imageName, []string{"/nonexistent"}, "no such file"},
		{"not a program", imageName, []string{"image_test.go"}, "bad magic number"},
		{"dynamic", imageName, []string{program(t, "dynamic", elf.EM_X86_64, elf.PT_INTERP)}, "CGO_ENABLED=0"},
		{"two machines", imageName, []string{static, program(t, "arm", elf.EM_AARCH64)}, "it is for arm64, the first one for amd64"},
		{"unknown machine", imageName, []string{program(t, "s390", elf.EM_S390)}, "no image architecture"},
		{"name without registry", "agent:1", []string{static}, "parse image name"},
		{"name without tag", "replypath.test/agent", []string{static}, "parse image name"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			directory := t.TempDir()
			args := []string{"-o", filepath.Join(directory, "image.tar"), "-name", test.image}
			err := run(append(args, test.programs...), io.Discard, io.Discard)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error is %v, want one that says %q", err, test.want)
			}
			left, err := os.ReadDir(directory)
			if err != nil {
				t.Fatal(err)
			}
			if len(left) != 0 {
				t.Errorf("a refused run left %v", left)
			}
		})
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}
