package main

import (
	"archive/tar"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Annotations of an index entry from which containerd takes the image's name.
// The OCI image layout specification asks that the first holds a mere tag.
const (
	annotationTag  = "org.opencontainers.image.ref.name"
	annotationName = "io.containerd.image.name"
)

// parseName parses the full name of an image. Registry and tag must be there:
// Kubernetes compares names literally and would ask docker.io otherwise.
func parseName(full string) (name.Tag, error) {
	tag, err := name.NewTag(full, name.StrictValidation)
	if err != nil {
		return name.Tag{}, fmt.Errorf("parse image name: %w", err)
	}
	return tag, nil
}

// writeFile writes the image's archive to path, or leaves what was there.
func writeFile(path string, tag name.Tag, image v1.Image) (err error) {
	partly := path + ".partly"
	file, err := os.Create(partly)
	if err != nil {
		return fmt.Errorf("create archive: %w", err)
	}
	defer func() {
		if err != nil {
			file.Close()
			os.Remove(partly)
		}
	}()
	if err := write(file, tag, image); err != nil {
		return err
	}
	if err := file.Close(); err != nil {
		return fmt.Errorf("close archive: %w", err)
	}
	if err := os.Rename(partly, path); err != nil {
		return fmt.Errorf("name archive: %w", err)
	}
	return nil
}

// write writes an OCI image layout with a docker-save manifest beside it, both
// of which point to the same blobs. It is what `docker save` itself writes.
func write(w io.Writer, tag name.Tag, image v1.Image) error {
	archive := tar.NewWriter(w)
	saved := tarball.Descriptor{RepoTags: []string{tag.String()}}

	layers, err := image.Layers()
	if err != nil {
		return fmt.Errorf("list layers: %w", err)
	}
	for _, layer := range layers {
		path, err := addLayer(archive, layer)
		if err != nil {
			return err
		}
		saved.Layers = append(saved.Layers, path)
	}
	if saved.Config, err = addBlob(archive, image.ConfigName, image.RawConfigFile); err != nil {
		return err
	}
	if _, err := addBlob(archive, image.Digest, image.RawManifest); err != nil {
		return err
	}

	index, err := index(tag, image)
	if err != nil {
		return err
	}
	if err := addJSON(archive, "index.json", index); err != nil {
		return err
	}
	if err := addJSON(archive, "manifest.json", tarball.Manifest{saved}); err != nil {
		return err
	}
	if err := addJSON(archive, "oci-layout", map[string]string{"imageLayoutVersion": "1.0.0"}); err != nil {
		return err
	}
	if err := archive.Close(); err != nil {
		return fmt.Errorf("end archive: %w", err)
	}
	return nil
}

// index returns the layout's list of images: this one.
func index(tag name.Tag, image v1.Image) (*v1.IndexManifest, error) {
	descriptor, err := partial.Descriptor(image)
	if err != nil {
		return nil, fmt.Errorf("describe image: %w", err)
	}
	file, err := image.ConfigFile()
	if err != nil {
		return nil, fmt.Errorf("read image configuration: %w", err)
	}
	descriptor.Platform = file.Platform()
	descriptor.Annotations = map[string]string{annotationTag: tag.TagStr(), annotationName: tag.String()}
	return &v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{*descriptor}}, nil
}

func addLayer(archive *tar.Writer, layer v1.Layer) (string, error) {
	return addBlob(archive, layer.Digest, func() ([]byte, error) {
		content, err := layer.Compressed()
		if err != nil {
			return nil, err
		}
		defer content.Close()
		return io.ReadAll(content)
	})
}

// addBlob adds content under the name that its digest gives, and returns that name.
func addBlob(archive *tar.Writer, digest func() (v1.Hash, error), content func() ([]byte, error)) (string, error) {
	hash, err := digest()
	if err != nil {
		return "", fmt.Errorf("digest blob: %w", err)
	}
	bytes, err := content()
	if err != nil {
		return "", fmt.Errorf("read blob: %w", err)
	}
	path := "blobs/" + hash.Algorithm + "/" + hash.Hex
	return path, addFile(archive, path, 0o644, time.Unix(0, 0), bytes)
}

func addJSON(archive *tar.Writer, path string, value any) error {
	content, err := json.Marshal(value)
	if err != nil {
		return fmt.Errorf("encode %s: %w", path, err)
	}
	return addFile(archive, path, 0o644, time.Unix(0, 0), content)
}
