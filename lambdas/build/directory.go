package build

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// Directory is the store of a machine that runs products where the toolchain
// left them, with the languages that are installed. An image is
// lambdamesh.local/<runtime>:<hash>.
type Directory struct{ Toolchain *Toolchain }

// Takes implements [Store]: what runs a runtime's products has to be installed.
func (d Directory) Takes(ctx context.Context, runtime v1alpha1.Runtime) error {
	_, err := d.Toolchain.tool(ctx, runtime)
	return err
}

// Put implements [Store].
func (d Directory) Put(ctx context.Context, product Product) (Artifact, error) {
	tool, err := d.Toolchain.tool(ctx, product.Runtime)
	if err != nil {
		return Artifact{}, err
	}
	return Artifact{
		Image: v1alpha1.LocalImagePrefix + string(product.Runtime) + ":" + product.Hash, SourceHash: product.Hash,
		Note: versionNote(product, tool),
	}, nil
}

// Command is how a product is started on this machine.
type Command struct {
	Path string
	Args []string
	// SourceDir is the value of LAMBDAMESH_SOURCE.
	SourceDir string
}

// Command returns how to start the product of a local image.
func (d Directory) Command(ctx context.Context, image string) (Command, error) {
	runtime, hash, found := strings.Cut(strings.TrimPrefix(image, v1alpha1.LocalImagePrefix), ":")
	if !found || !strings.HasPrefix(image, v1alpha1.LocalImagePrefix) || strings.ContainsAny(runtime+hash, `/\.`) {
		return Command{}, fmt.Errorf("image %q is not one of the local store (%s<runtime>:<hash>)", image, v1alpha1.LocalImagePrefix)
	}
	dir := filepath.Join(d.Toolchain.config.Dir, runtime, hash)
	if _, err := os.Stat(dir); err != nil {
		return Command{}, fmt.Errorf("image %s is not in the artifact store: %w", image, err)
	}
	command := Command{Path: filepath.Join(dir, program), SourceDir: filepath.Join(dir, sourceFolder)}
	if known, interpreted := interpreterOf(v1alpha1.Runtime(runtime)); interpreted {
		tool, err := d.Toolchain.tool(ctx, v1alpha1.Runtime(runtime))
		if err != nil {
			return Command{}, err
		}
		command.Path, command.Args = tool.path, []string{filepath.Join(dir, runtimeFolder, known.entry)}
	}
	return command, nil
}
