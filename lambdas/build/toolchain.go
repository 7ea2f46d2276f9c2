package build

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"github.com/lambdamesh/lambdamesh/lambdas/runtimes"
	"github.com/lambdamesh/lambdamesh/lambdas/source"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// ToolchainConfig configures a [Toolchain].
type ToolchainConfig struct {
	// Dir is where products are kept, such as <data-dir>/artifacts.
	Dir string
	// GoCache is the Go build cache; default the user's own, which is warm.
	GoCache string
	// Timeout of one build; default 5 minutes.
	Timeout time.Duration
	// LookPath finds a program; default [exec.LookPath].
	LookPath func(name string) (string, error)
}

// Validate tells what is missing.
func (c ToolchainConfig) Validate() error {
	if !filepath.IsAbs(c.Dir) {
		return fmt.Errorf("artifact directory %q: want an absolute path", c.Dir)
	}
	return nil
}

// Toolchain builds with what this program has in itself and the languages
// installed on this machine. A product is a directory <Dir>/<runtime>/<hash>;
// the hash covers all that goes into it, so that the same source is built once
// and a finished directory never changes.
type Toolchain struct {
	config ToolchainConfig

	mu    sync.Mutex
	tools map[v1alpha1.Runtime]tool
}

// tool is a language found on this machine.
type tool struct {
	path    string // the real executable, not a version manager's shim
	version string // "1.26.8"
}

// NewToolchain returns a toolchain that keeps its products under config.Dir.
func NewToolchain(config ToolchainConfig) (*Toolchain, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	if config.Timeout == 0 {
		config.Timeout = 5 * time.Minute
	}
	if config.LookPath == nil {
		config.LookPath = exec.LookPath
	}
	// What a killed build left behind.
	if err := os.RemoveAll(filepath.Join(config.Dir, "tmp")); err != nil {
		return nil, fmt.Errorf("clear unfinished builds: %w", err)
	}
	if err := os.MkdirAll(filepath.Join(config.Dir, "tmp"), 0o700); err != nil {
		return nil, fmt.Errorf("make the directory of built lambdas: %w", err)
	}
	return &Toolchain{config: config, tools: map[v1alpha1.Runtime]tool{}}, nil
}

// Build builds the input unless its product is there already. What the user can
// put right is a [*source.Error].
func (t *Toolchain) Build(ctx context.Context, input Input) (Product, error) {
	builder, err := t.builderOf(ctx, input.Runtime)
	if err != nil {
		return Product{}, err
	}
	hash, err := hashOf(builder.server, string(input.Runtime), builder.version, input.Handler, input.Tree.Hash())
	if err != nil {
		return Product{}, err
	}
	product := Product{Runtime: input.Runtime, Version: input.Version, Hash: hash, Dir: filepath.Join(t.config.Dir, string(input.Runtime), hash)}
	if _, err := os.Stat(product.Dir); err == nil {
		return product, nil
	}
	dir, err := os.MkdirTemp(filepath.Join(t.config.Dir, "tmp"), string(input.Runtime)+"-")
	if err != nil {
		return Product{}, fmt.Errorf("make a directory to build in: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }() // the next start clears what stays
	ctx, cancel := context.WithTimeout(ctx, t.config.Timeout)
	defer cancel()
	w := work{dir: dir, product: filepath.Join(dir, "product"), server: builder.server}
	if err := os.MkdirAll(filepath.Join(w.product, sourceFolder), 0o700); err != nil {
		return Product{}, fmt.Errorf("make a directory to build in: %w", err)
	}
	if _, interpreted := interpreterOf(input.Runtime); interpreted {
		if err := os.CopyFS(filepath.Join(w.product, runtimeFolder), builder.server); err != nil {
			return Product{}, fmt.Errorf("write the runtime server: %w", err)
		}
	}
	if err := builder.build(ctx, w, input); err != nil {
		return Product{}, err
	}
	sync := syncTree
	if _, err := os.Stat(filepath.Join(w.product, packagesFolder)); err == nil {
		sync = syncAll
	}
	return product, publish(w.product, product.Dir, sync)
}

// builder builds one language.
type builder struct {
	// server is the runtime server, or the SDK that is compiled in.
	server fs.FS
	// version of what shapes the product.
	version string
	build   func(ctx context.Context, w work, input Input) error
}

// work is the place of one build.
type work struct {
	dir     string // for whatever the build needs
	product string // becomes the product
	server  fs.FS
}

func (t *Toolchain) builderOf(ctx context.Context, runtime v1alpha1.Runtime) (builder, error) {
	switch runtime {
	case v1alpha1.RuntimeGo:
		sdk, err := runtimes.GoSDK()
		if err != nil {
			return builder{}, err
		}
		tool, err := t.tool(ctx, runtime)
		return builder{sdk, tool.version, t.buildGo}, err
	case v1alpha1.RuntimeNodeJS:
		return builder{runtimes.NodeJS(), nodeVersion, t.buildNodeJS}, nil
	case v1alpha1.RuntimePython:
		// Who only hands products on to others need not have it.
		tool, err := t.tool(ctx, runtime)
		if err != nil && source.ReasonOf(err) != source.ReasonRuntimeMissing {
			return builder{}, err
		}
		return builder{runtimes.Python(), tool.version, t.buildPython}, nil
	}
	return builder{}, source.NotSupported("runtime %q is not supported by this version; use go, nodejs or python", runtime)
}

// publish moves a finished product to its place, where it appears whole or not
// at all, a power cut included.
func publish(dir, final string, sync func(dir string) error) error {
	if err := sync(dir); err != nil {
		return fmt.Errorf("store the built lambda: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(final), 0o700); err != nil {
		return fmt.Errorf("store the built lambda: %w", err)
	}
	if err := os.Rename(dir, final); err != nil {
		if _, there := os.Stat(final); there == nil {
			return nil // another build of the same source was faster
		}
		return fmt.Errorf("store the built lambda: %w", err)
	}
	return syncPath(filepath.Dir(final))
}

// syncTree writes files and directories through to the disk.
func syncTree(dir string) error {
	return filepath.WalkDir(dir, func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.Type()&fs.ModeSymlink != 0 {
			return err
		}
		return syncPath(name)
	})
}

func syncPath(name string) error {
	file, err := os.Open(name)
	if err != nil {
		return fmt.Errorf("write through to the disk: %w", err)
	}
	defer file.Close()
	if err := file.Sync(); err != nil {
		return fmt.Errorf("write %s through to the disk: %w", name, err)
	}
	return nil
}

func hashOf(server fs.FS, parts ...string) (string, error) {
	hash := sha256.New()
	write := func(text string) { fmt.Fprintf(hash, "%d:%s", len(text), text) }
	for _, part := range parts {
		write(part)
	}
	err := fs.WalkDir(server, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		data, err := fs.ReadFile(server, name)
		write(name)
		write(string(data))
		return err
	})
	if err != nil {
		return "", fmt.Errorf("read the embedded runtime: %w", err)
	}
	return hex.EncodeToString(hash.Sum(nil))[:20], nil
}
