package place

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// maxSocketPath is what a Unix socket's path may hold on every system: 104
// bytes on macOS, the final NUL included.
const maxSocketPath = 103

// SocketDir makes an empty directory that only this user may enter: dir, whose
// content of an earlier run is cleared away, or one under the system's temporary
// directory where the path of the longest name in it would be too long.
func SocketDir(dir, longest string) (string, error) {
	if !fits(dir, longest) {
		made, err := os.MkdirTemp("", "lambdamesh-")
		if err != nil {
			return "", fmt.Errorf("make a directory for sockets: %w", err)
		}
		if !fits(made, longest) {
			return "", errors.Join(fmt.Errorf("%s is too long a directory for Unix sockets; choose a shorter data directory, or a shorter TMPDIR", made), os.Remove(made))
		}
		return made, nil
	}
	if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o700)); err != nil {
		return "", fmt.Errorf("make a directory for sockets: %w", err)
	}
	return dir, nil
}

func fits(dir, longest string) bool { return len(filepath.Join(dir, longest)) <= maxSocketPath }
