// Package python compiles Python's own modules into a layer. Packages of Debian
// do that when they are installed, and an image that nobody may write to would
// do it again at every start of a lambda: four fifths of the start's CPU time.
package python

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/lambdamesh/lambdamesh/hack/images/internal/debian"
	"github.com/lambdamesh/lambdamesh/hack/images/internal/layer"
)

// Layer has the bytecode for all architectures, compiled by the interpreter of
// the set, which is for this machine's. An interpreter with another source than
// the one compiled here takes no notice: the source's hash is in the bytecode.
func Layer(ctx context.Context, cache *layer.Cache, apt *debian.Apt, set debian.Set) (v1.Layer, error) {
	key := []string{"python"}
	for _, p := range set.Packages {
		key = append(key, p.SHA256)
	}
	return cache.Layer(key, func(w *layer.Writer) error {
		root, err := os.MkdirTemp("", "lambdamesh-python-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(root)
		for _, p := range set.Packages {
			if out, err := exec.CommandContext(ctx, "dpkg-deb", "--extract", apt.File(p), root).CombinedOutput(); err != nil {
				return fmt.Errorf("unpack %s: %w\n%s", p, err, out)
			}
		}
		modules, err := compile(ctx, root)
		if err != nil {
			return err
		}
		return add(w, root, modules)
	})
}

// compile runs the interpreter that lies in root, with the libraries there, and
// returns the folder of the modules.
func compile(ctx context.Context, root string) (string, error) {
	find := func(pattern string) string {
		found, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil || len(found) != 1 {
			return ""
		}
		return found[0]
	}
	loader, python, modules := find("usr/lib/*-linux-gnu/ld-linux-*"), find("usr/bin/python3.[0-9]*"), find("usr/lib/python3.[0-9]*")
	if loader == "" || python == "" || modules == "" {
		return "", errors.New("found no interpreter with its loader and modules in Debian's packages")
	}
	command := exec.CommandContext(ctx, loader, "--library-path", filepath.Dir(loader), python, "-m", "compileall", "-q",
		"-s", root, "-p", "/", // the names that tracebacks show
		"-x", "_sysconfigdata", // the only modules that differ between architectures
		"--invalidation-mode", "checked-hash", modules)
	// What the compiler itself imports it would keep with the time of its file.
	command.Env = []string{
		"PYTHONHOME=" + filepath.Join(root, "usr"), "PYTHONDONTWRITEBYTECODE=1", "PYTHONHASHSEED=0", "LC_ALL=C.UTF-8",
	}
	if out, err := command.CombinedOutput(); err != nil {
		return "", fmt.Errorf("compile Python's modules: %w\n%s", err, out)
	}
	return modules, nil
}

func add(w *layer.Writer, root, modules string) error {
	return filepath.WalkDir(modules, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !strings.HasSuffix(path, ".pyc") {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		return w.File(filepath.ToSlash(name), 0o644, data)
	})
}
