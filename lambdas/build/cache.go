package build

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// cached returns <Dir>/cache/<kind>/<key>, which make fills once.
func (t *Toolchain) cached(ctx context.Context, kind, key string, make func(ctx context.Context, dir string) error) (string, error) {
	final := filepath.Join(t.config.Dir, "cache", kind, key)
	if _, err := os.Stat(final); err == nil {
		return final, nil
	}
	dir, err := os.MkdirTemp(filepath.Join(t.config.Dir, "tmp"), kind+"-")
	if err != nil {
		return "", fmt.Errorf("make a directory for dependencies: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }() // the next start clears what stays
	if err := make(ctx, dir); err != nil {
		return "", err
	}
	return final, publish(dir, final, syncAll)
}

// Bounds of what the dependencies of one source may take on disk.
const (
	maxDependencyBytes = 1 << 30
	maxDependencyFiles = 200_000
)

var errTooLarge = errors.New("it takes too much of the disk")

// runBounded is run with a bound on what the tool may write into dir.
func runBounded(ctx context.Context, dir, path string, env []string, args ...string) (string, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		for tick := time.NewTicker(time.Second); ; {
			select {
			case <-ctx.Done():
				tick.Stop()
				return
			case <-tick.C:
				if tooLarge(dir) {
					cancel(errTooLarge)
				}
			}
		}
	}()
	output, err := run(ctx, dir, path, env, args...)
	if cause := context.Cause(ctx); errors.Is(cause, errTooLarge) || tooLarge(dir) {
		err = errTooLarge
	}
	cancel(nil)
	<-watched
	return output, err
}

func tooLarge(dir string) bool {
	var bytes, files int64
	_ = filepath.WalkDir(dir, func(_ string, entry fs.DirEntry, err error) error {
		if err != nil {
			return nil //nolint:nilerr // it goes while it is looked at
		}
		files++
		if info, err := entry.Info(); err == nil {
			bytes += info.Size()
		}
		if bytes > maxDependencyBytes || files > maxDependencyFiles {
			return fs.SkipAll
		}
		return nil
	})
	return bytes > maxDependencyBytes || files > maxDependencyFiles
}
