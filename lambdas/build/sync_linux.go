package build

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// syncAll writes a directory of very many files through to the disk, with its
// file system: one after another they would take minutes.
func syncAll(dir string) error {
	file, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("write through to the disk: %w", err)
	}
	defer file.Close()
	if err := unix.Syncfs(int(file.Fd())); err != nil {
		return fmt.Errorf("write %s through to the disk: %w", dir, err)
	}
	return nil
}
