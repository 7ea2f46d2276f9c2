// Package images makes container images of static programs and pushes them to a
// registry, without a container engine.
package images

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"os"
	"path"
	"runtime"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// NonRoot is the user of images that name no other.
const NonRoot = "65532:65532"

// Image is an image of one static program.
type Image struct {
	// Program is a file of this machine; it becomes /NAME, the entrypoint.
	Program string
	Name    string
	User    string
}

// Push writes the image to a registry as `reference`, host and tag included.
func Push(ctx context.Context, image Image, reference string) error {
	ref, err := name.ParseReference(reference)
	if err != nil {
		return err
	}
	built, err := image.build()
	if err != nil {
		return fmt.Errorf("make the image %s: %w", reference, err)
	}
	if err := remote.Write(ref, built, remote.WithContext(ctx)); err != nil {
		return fmt.Errorf("push the image %s: %w", reference, err)
	}
	return nil
}

func (i Image) build() (v1.Image, error) {
	program, err := os.ReadFile(i.Program)
	if err != nil {
		return nil, err
	}
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	for _, dir := range []struct {
		name string
		mode int64
	}{{"etc/", 0o755}, {"tmp/", 0o1777}} {
		if err := w.WriteHeader(&tar.Header{Name: dir.name, Typeflag: tar.TypeDir, Mode: dir.mode}); err != nil {
			return nil, err
		}
	}
	for _, file := range []struct {
		name    string
		mode    int64
		content []byte
	}{
		{"etc/passwd", 0o644, []byte("root:x:0:0:root:/:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/:/sbin/nologin\n")},
		{"etc/group", 0o644, []byte("root:x:0:\nnonroot:x:65532:\n")},
		{i.Name, 0o755, program},
	} {
		if err := w.WriteHeader(&tar.Header{Name: file.name, Mode: file.mode, Size: int64(len(file.content))}); err != nil {
			return nil, err
		}
		if _, err := w.Write(file.content); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	// Not compressed: it goes from this machine to this machine.
	image, err := mutate.AppendLayers(mutate.MediaType(empty.Image, types.OCIManifestSchema1), static.NewLayer(layer.Bytes(), types.OCIUncompressedLayer))
	if err != nil {
		return nil, err
	}
	config, err := image.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", runtime.GOARCH
	user := i.User
	if user == "" {
		user = NonRoot
	}
	config.Config = v1.Config{User: user, Entrypoint: []string{path.Join("/", i.Name)}, WorkingDir: "/", Env: []string{"PATH=/"}}
	return mutate.ConfigFile(image, config)
}
