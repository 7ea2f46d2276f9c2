package oci

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Write makes dir an OCI image layout of the images, and archive the same in a
// file that `docker load`, `ctr images import` and `kind load image-archive` take.
func Write(dir, archive string, source Source, images []*Image) error {
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, image := range images {
		for _, tag := range image.Tags {
			index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: image.Index, Descriptor: v1.Descriptor{
				Annotations: map[string]string{
					"org.opencontainers.image.ref.name": tag,
					"io.containerd.image.name":          source.reference(image, tag),
				},
			}})
		}
		for _, document := range image.SBOMs {
			index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: document})
		}
	}
	fresh := dir + ".new"
	if err := os.RemoveAll(fresh); err != nil {
		return err
	}
	if _, err := layout.Write(fresh, index); err != nil {
		return fmt.Errorf("write %s: %w", dir, err)
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := os.Rename(fresh, dir); err != nil {
		return err
	}
	manifest, err := dockerManifest(source, images)
	if err != nil {
		return err
	}
	if err := pack(archive, dir, manifest); err != nil {
		return fmt.Errorf("write %s: %w", archive, err)
	}
	return nil
}

func (s Source) reference(image *Image, tag string) string {
	return s.Registry + "/" + image.Name + ":" + tag
}

// dockerManifest is the index of archives before OCI's: one platform, this
// machine's if it was built. Its blobs are those of the layout, as in archives
// of `docker save` since version 25.
func dockerManifest(source Source, images []*Image) ([]byte, error) {
	type entry struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	var entries []entry
	for _, image := range images {
		chosen := image.Platforms[0]
		for _, built := range image.Platforms {
			config, err := built.ConfigFile()
			if err != nil {
				return nil, err
			}
			if config.Architecture == runtime.GOARCH {
				chosen = built
			}
		}
		manifest, err := chosen.Manifest()
		if err != nil {
			return nil, err
		}
		e := entry{Config: blob(manifest.Config.Digest)}
		for _, tag := range image.Tags {
			e.RepoTags = append(e.RepoTags, source.reference(image, tag))
		}
		for _, layer := range manifest.Layers {
			e.Layers = append(e.Layers, blob(layer.Digest))
		}
		entries = append(entries, e)
	}
	return json.Marshal(entries)
}

func blob(hash v1.Hash) string { return "blobs/" + hash.Algorithm + "/" + hash.Hex }

// pack writes the files of dir, and manifest.json, in the order of their names.
func pack(archive, dir string, manifest []byte) (err error) {
	out, err := os.Create(archive + ".new")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, out.Close(), os.Remove(out.Name()))
		}
	}()
	w := tar.NewWriter(out)
	header := func(name string, size int64) error {
		return w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: size, ModTime: time.Unix(0, 0)})
	}
	var files []string
	err = filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.Type().IsRegular() {
			files = append(files, path)
		}
		return err
	})
	if err != nil {
		return err
	}
	slices.Sort(files)
	for _, path := range files {
		if err := packFile(w, header, dir, path); err != nil {
			return err
		}
	}
	if err := header("manifest.json", int64(len(manifest))); err != nil {
		return err
	}
	if _, err := w.Write(manifest); err != nil {
		return err
	}
	if err := errors.Join(w.Close(), out.Close()); err != nil {
		return err
	}
	return os.Rename(out.Name(), archive)
}

func packFile(w io.Writer, header func(string, int64) error, dir, path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	name, err := filepath.Rel(dir, path)
	if err != nil {
		return err
	}
	if err := header(filepath.ToSlash(name), info.Size()); err != nil {
		return err
	}
	_, err = io.Copy(w, file)
	return err
}
