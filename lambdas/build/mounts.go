package build

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/lambdamesh/lambdamesh/lambdas/source"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// Mounts is the store of clusters: an interpreted language runs from an image
// that has the language, with the product mounted into it.
type Mounts struct {
	// Prefix of the images, which are <Prefix><runtime>:<tag>. Empty: the
	// official ones, docker.io/library/node and python, in their slim variant.
	Prefix string
	// Tag of the images when Prefix is set; with a version in the lambda the tag
	// is <version>-<Tag>.
	Tag string
}

// maxMounted is what a ConfigMap takes (1 MiB), less what its names and the
// object around them need.
const maxMounted = 1<<20 - 64<<10

// Put implements [Store].
func (m Mounts) Put(ctx context.Context, product Product) (Artifact, error) {
	if _, interpreted := interpreterOf(product.Runtime); !interpreted {
		return Artifact{}, m.Takes(ctx, product.Runtime)
	}
	artifact := Artifact{Image: m.image(product), SourceHash: product.Hash, Command: commandOf(product.Runtime)}
	size := 0
	for _, folder := range []string{sourceFolder, runtimeFolder, packagesFolder} {
		files, err := filesOf(filepath.Join(product.Dir, folder))
		if err != nil {
			return Artifact{}, err
		}
		if len(files) == 0 { // no packages
			continue
		}
		for name, content := range files {
			size += len(name) + len(content)
		}
		artifact.Mounts = append(artifact.Mounts, Mount{Name: folder, Dir: Dir + "/" + folder, Files: files})
	}
	if size > maxMounted {
		return Artifact{}, &source.Error{Reason: source.ReasonNeedsBuild, Message: fmt.Sprintf(
			"the built lambda has %d bytes, and %d can be mounted into a pod; use fewer or smaller dependencies", size, maxMounted)}
	}
	return artifact, nil
}

// Takes implements [Store].
func (m Mounts) Takes(_ context.Context, runtime v1alpha1.Runtime) error {
	if _, interpreted := interpreterOf(runtime); interpreted {
		return nil
	}
	return &source.Error{Reason: source.ReasonNeedsBuild, Message: fmt.Sprintf(
		"runtime %s is compiled into an image, and this version has no image builder for clusters; use nodejs or python there", runtime)}
}

func (m Mounts) image(product Product) string {
	official := map[v1alpha1.Runtime][2]string{
		v1alpha1.RuntimeNodeJS: {"docker.io/library/node", "22"},
		v1alpha1.RuntimePython: {"docker.io/library/python", "3.13"},
	}[product.Runtime]
	switch {
	case m.Prefix == "":
		return official[0] + ":" + cmp.Or(product.Version, official[1]) + "-slim"
	case product.Version == "":
		return m.Prefix + string(product.Runtime) + ":" + m.Tag
	}
	return m.Prefix + string(product.Runtime) + ":" + product.Version + "-" + m.Tag
}

// filesOf are the files of a directory, without what an interpreter left there
// for itself.
func filesOf(dir string) (map[string][]byte, error) {
	files := map[string][]byte{}
	root := os.DirFS(dir)
	err := fs.WalkDir(root, ".", func(name string, entry fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist) && name == ".":
			return fs.SkipAll
		case err != nil:
			return err
		case entry.IsDir() && entry.Name() == "__pycache__":
			return fs.SkipDir
		case entry.IsDir():
			return nil
		}
		files[name], err = fs.ReadFile(root, name)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read the built lambda: %w", err)
	}
	return files, nil
}
