package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lambdamesh/lambdamesh/hack/cluster/internal/state"
)

// Nodes get groups below one of the cluster's, and the kubelet and runc make
// theirs below those. Version 1 has a tree for each controller, version 2 one.

const (
	cgroupRoot     = "/sys/fs/cgroup"
	subtreeControl = "cgroup.subtree_control"
)

// controllers are what the kubelet cannot do without, in either version.
func controllers() []string { return []string{"cpu", "cpuset", "memory", "pids"} }

// cgroupTree is the root of one hierarchy.
type cgroupTree struct {
	path        string
	version     int
	controllers []string
}

func cgroupTrees() ([]cgroupTree, error) {
	var fsInfo unix.Statfs_t
	if err := unix.Statfs(cgroupRoot, &fsInfo); err == nil && fsInfo.Type == unix.CGROUP2_SUPER_MAGIC {
		names, err := read(filepath.Join(cgroupRoot, "cgroup.controllers"))
		return []cgroupTree{{cgroupRoot, 2, strings.Fields(names)}}, err
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	return parseV1(string(mounts)), nil
}

// parseV1 finds the trees of version 1 in /proc/self/mountinfo, and the one of
// version 2 that may lie beside them: it has no controllers, and runc makes
// groups in it nevertheless.
func parseV1(mountinfo string) (trees []cgroupTree) {
	for line := range strings.Lines(mountinfo) {
		// 36 25 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
		before, after, _ := strings.Cut(line, " - ")
		where, what := strings.Fields(before), strings.Fields(after)
		if len(where) < 5 || len(what) < 3 || filepath.Dir(where[4]) != cgroupRoot {
			continue
		}
		if what[0] == "cgroup2" {
			trees = append(trees, cgroupTree{where[4], 2, nil})
		}
		if what[0] != "cgroup" {
			continue
		}
		options := slices.DeleteFunc(strings.Split(what[2], ","), func(o string) bool { return o == "rw" || o == "ro" })
		trees = append(trees, cgroupTree{where[4], 1, options})
	}
	return trees
}

func checkCgroups() error {
	trees, err := cgroupTrees()
	if err != nil {
		return err
	}
	var have []string
	for _, tree := range trees {
		have = append(have, tree.controllers...)
	}
	var missing []string
	for _, controller := range controllers() {
		if !slices.Contains(have, controller) {
			missing = append(missing, controller)
		}
	}
	if missing != nil {
		return lack("no cgroup controller %s below %s: the kernel lacks it, or this container was not given it", strings.Join(missing, ", "), cgroupRoot)
	}
	if unix.Access(trees[0].path, unix.W_OK) != nil {
		return lack("%s is read-only: inside a container it has to be a privileged one", trees[0].path)
	}
	return nil
}

// MakeCgroup makes the group of one node, empty.
func MakeCgroup(ctx context.Context, s *state.State, node string) error {
	if err := RemoveCgroup(ctx, s, node); err != nil {
		return err
	}
	trees, err := cgroupTrees()
	if err != nil {
		return err
	}
	for _, tree := range trees {
		if tree.controllers == nil {
			continue
		}
		if err := tree.make(filepath.Join(s.Cgroup(), node)); err != nil {
			return err
		}
	}
	return nil
}

func (t cgroupTree) make(group string) error {
	parent := t.path
	for name := range strings.SplitSeq(strings.Trim(group, "/"), "/") {
		if t.version == 2 {
			if err := t.delegate(parent); err != nil {
				return err
			}
		}
		dir := filepath.Join(parent, name)
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("make the cgroup: %w", err)
		}
		if slices.Contains(t.controllers, "cpuset") && t.version == 1 {
			// A new group has no CPUs and no memory, and takes no process.
			for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
				value, err := read(filepath.Join(parent, file))
				if err == nil {
					err = write(filepath.Join(dir, file), value)
				}
				if err != nil {
					return err
				}
			}
		}
		parent = dir
	}
	return nil
}

// delegate lets the groups below one have the controllers.
func (t cgroupTree) delegate(dir string) error {
	path := filepath.Join(dir, subtreeControl)
	if dir == t.path {
		// The kubelet enables what we do not: what was there is kept in any case.
		unlock, err := state.LockMachine()
		if err != nil {
			return err
		}
		defer unlock()
		before, err := read(path)
		if err != nil {
			return err
		}
		if err := remember(path, before); err != nil {
			return err
		}
	}
	// Of version 2 the kubelet wants these too where the kernel has them.
	wanted := controllers()
	for _, controller := range []string{"hugetlb", "io"} {
		if slices.Contains(t.controllers, controller) {
			wanted = append(wanted, controller)
		}
	}
	err := write(path, "+"+strings.Join(wanted, " +"))
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("%s holds processes itself, as in a container, so that its groups get no controllers: move them into a group below it first", dir)
	}
	return err
}

// restoreControllers takes away those that were not there before.
func restoreControllers(path, before string) error {
	now, err := read(path)
	if err != nil {
		return err
	}
	for controller := range strings.FieldsSeq(now) {
		// One that another program uses by now is in use, and stays.
		if slices.Contains(strings.Fields(before), controller) {
			continue
		}
		if err := write(path, "-"+controller); err != nil && !errors.Is(err, unix.EBUSY) {
			return err
		}
	}
	return nil
}

// RemoveCgroup removes the group of a node, or with "" that of the cluster, and
// all below it. Processes of it that have just been killed may still be there.
func RemoveCgroup(ctx context.Context, s *state.State, node string) error {
	trees, err := cgroupTrees()
	if err != nil {
		return err
	}
	for _, tree := range trees {
		if err := removeTree(ctx, filepath.Join(tree.path, s.Cgroup(), node)); err != nil {
			return err
		}
	}
	return nil
}

func removeTree(ctx context.Context, dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if entry.IsDir() {
			if err := removeTree(ctx, filepath.Join(dir, entry.Name())); err != nil {
				return err
			}
		}
	}
	for {
		err := unix.Rmdir(dir)
		if err == nil || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("remove the cgroup %s: %w", dir, err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("remove the cgroup %s: it still holds processes: %w", dir, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
