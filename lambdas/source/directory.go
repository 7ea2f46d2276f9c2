package source

import (
	"fmt"
	"io/fs"
	"os"
)

// Directory is the tree of a directory, without links and installed packages.
func Directory(dir string) (Tree, error) {
	tree, size := Tree{Files: map[string][]byte{}}, 0
	root := os.DirFS(dir)
	err := fs.WalkDir(root, ".", func(name string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && (entry.Name() == "node_modules" || entry.Name() == ".git"):
			return fs.SkipDir
		case !entry.Type().IsRegular():
			return nil
		}
		if err := checkPath(name); err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		if size += int(info.Size()); size > maxTreeBytes || len(tree.Files) == maxTreeFiles {
			return Failed("%s has more than %d files or %d MiB", dir, maxTreeFiles, maxTreeBytes>>20)
		}
		tree.Files[name], err = fs.ReadFile(root, name)
		return err
	})
	if err != nil {
		return Tree{}, fmt.Errorf("read the source: %w", err)
	}
	return tree, nil
}
