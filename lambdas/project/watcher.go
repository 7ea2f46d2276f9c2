package project

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/fsnotify/fsnotify"
)

// settle is how long a directory must be quiet: an editor writes a file in
// several steps.
const settle = 20 * time.Millisecond

// Watcher tells that something in directories changed.
type Watcher struct {
	watcher *fsnotify.Watcher
	dirs    []string
}

// NewWatcher returns one that watches nothing yet.
func NewWatcher() (*Watcher, error) {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("watch for changed files: %w", err)
	}
	return &Watcher{watcher: watcher}, nil
}

// Close ends it.
func (w *Watcher) Close() error { return w.watcher.Close() }

// Watch watches these directories, without those below them, and no others. It
// tells whether there is a new one among them: what was read of that may be old.
func (w *Watcher) Watch(dirs []string) (news bool, err error) {
	for _, old := range w.dirs {
		if !slices.Contains(dirs, old) {
			_ = w.watcher.Remove(old) // one that was deleted is gone already
		}
	}
	var watched []string
	for _, dir := range dirs {
		if !slices.Contains(w.dirs, dir) {
			if err := w.watcher.Add(dir); err != nil {
				return news, fmt.Errorf("watch %s: %w", dir, err)
			}
			news = true
		}
		watched = append(watched, dir)
	}
	w.dirs = watched
	return news, nil
}

// Wait returns nil when something changed and no more does for a moment.
func (w *Watcher) Wait(ctx context.Context) error {
	var quiet <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-w.watcher.Errors:
			// Such as too many events at once: what they were is to be looked for.
			if err == nil {
				return fmt.Errorf("watch for changed files: %w", fsnotify.ErrClosed)
			}
			quiet = time.After(settle)
		case event := <-w.watcher.Events:
			if event.Op != fsnotify.Chmod {
				quiet = time.After(settle)
			}
		case <-quiet:
			return nil
		}
	}
}
