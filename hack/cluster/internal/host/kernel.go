package host

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/lambdamesh/lambdamesh/hack/cluster/internal/state"
)

// Settings of the kernel that several clusters need are changed by the first
// one and restored by the last one. What they were is in a file of its own
// beside the clusters' folders, written before the change.
func beforeFile() string { return filepath.Join(state.Root(), "before.json") }

func loadBefore() (map[string]string, error) {
	before := map[string]string{}
	data, err := os.ReadFile(beforeFile())
	if errors.Is(err, fs.ErrNotExist) {
		return before, nil
	}
	if err != nil {
		return nil, err
	}
	return before, json.Unmarshal(data, &before)
}

// remember keeps what a file of the kernel holds now, unless that is known.
// The caller holds the machine's lock.
func remember(path, value string) error {
	before, err := loadBefore()
	if err != nil {
		return err
	}
	if _, known := before[path]; known {
		return nil
	}
	before[path] = value
	data, err := json.Marshal(before)
	if err != nil {
		return err
	}
	tmp := beforeFile() + ".tmp"
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, beforeFile())
}

// change writes a file of the kernel.
func change(path, want string) error {
	unlock, err := state.LockMachine()
	if err != nil {
		return err
	}
	defer unlock()
	before, err := read(path)
	if err != nil || before == want {
		return err
	}
	if err := remember(path, before); err != nil {
		return err
	}
	return write(path, want)
}

// Restore writes back what the first cluster found, if this is the last one, and
// removes the cluster's file, so that of two that end at once one is the last.
func Restore(s *state.State) error {
	unlock, err := state.LockMachine()
	if err != nil {
		return err
	}
	defer unlock()
	if err := restore(s); err != nil {
		return err
	}
	return s.Forget()
}

func restore(s *state.State) error {
	all, err := state.All()
	if err != nil {
		return err
	}
	for _, other := range all {
		if other.Name != s.Name {
			return nil
		}
	}
	before, err := loadBefore()
	if err != nil {
		return err
	}
	var errs []error
	for path, value := range before {
		if filepath.Base(path) == subtreeControl {
			errs = append(errs, restoreControllers(path, value))
		} else {
			errs = append(errs, write(path, value))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := os.Remove(beforeFile()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func read(path string) (string, error) {
	data, err := os.ReadFile(path)
	return strings.TrimSpace(string(data)), err
}

func write(path, value string) error {
	if err := os.WriteFile(path, []byte(value), 0o644); err != nil {
		return fmt.Errorf("write %q: %w", value, err)
	}
	return nil
}
