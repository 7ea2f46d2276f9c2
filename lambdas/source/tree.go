package source

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// Tree is source: the content of files by slash-separated path. It has no
// links and no directories of its own, and is not changed once made.
type Tree struct {
	Files map[string][]byte
	// Revision tells which state of a moving source it is, such as a commit;
	// empty for what does not move.
	Revision string
}

// Hash is the same for the same files.
func (t Tree) Hash() string {
	hash := sha256.New()
	for _, name := range t.Names() {
		fmt.Fprintf(hash, "%d:%s%d:", len(name), name, len(t.Files[name]))
		hash.Write(t.Files[name])
	}
	return hex.EncodeToString(hash.Sum(nil))
}

// Names are the paths of the files, in order.
func (t Tree) Names() []string { return slices.Sorted(maps.Keys(t.Files)) }

// First returns the first of the names that the tree has, or "".
func (t Tree) First(names ...string) string {
	for _, name := range names {
		if _, has := t.Files[name]; has {
			return name
		}
	}
	return ""
}

// With returns the tree with one more file.
func (t Tree) With(name string, content []byte) Tree {
	t.Files = maps.Clone(t.Files)
	t.Files[name] = content
	return t
}

// Without returns the tree without a file.
func (t Tree) Without(name string) Tree {
	t.Files = maps.Clone(t.Files)
	delete(t.Files, name)
	return t
}

// Write lays the files out in a directory.
func (t Tree) Write(dir string) error {
	for _, name := range t.Names() {
		file := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			return fmt.Errorf("write the source: %w", err)
		}
		if err := os.WriteFile(file, t.Files[name], 0o600); err != nil {
			return fmt.Errorf("write the source: %w", err)
		}
	}
	return nil
}

// checkPath tells what is wrong with the path of a file in a tree. Names that
// a builder would act upon as its own are no user's.
func checkPath(name string) error {
	switch {
	case !fs.ValidPath(name) || name == "." || strings.ContainsAny(name, "\\\x00:"):
		return Failed("file %q: write a relative path with slashes and without '..', such as lib/tax.js", name)
	case len(name) > maxPath:
		return Failed("file %q: its path is longer than %d bytes", name[:40]+"...", maxPath)
	}
	for dir := range strings.SplitSeq(name, "/") {
		if dir == "node_modules" || dir == ".git" {
			return Failed("file %q: leave %s out; dependencies are installed from what the source declares", name, dir)
		}
	}
	return nil
}

// checkTree tells what is wrong with the files together: a file where another
// needs a directory.
func checkTree(t Tree) error {
	for _, name := range t.Names() {
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			if _, has := t.Files[dir]; has {
				return Failed("file %q: %q is a file and cannot be its directory too", name, dir)
			}
		}
	}
	return nil
}

const maxPath = 512
