package dev

import (
	"context"
	"fmt"
	"io"
	"strings"

	"k8s.io/apimachinery/pkg/api/equality"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/lambdas/project"
)

// follower applies what changes in the files that --apply names. An object that
// is no longer in a file stays: deleting is nothing to do by a slip in an editor.
type follower struct {
	paths   []string
	client  client.Client
	out     io.Writer
	watcher *project.Watcher
	applied map[string]object
}

// newFollower begins to watch; objects are those that the files had before.
func newFollower(paths []string, c client.Client, out io.Writer) (*follower, error) {
	watcher, err := project.NewWatcher()
	if err != nil {
		return nil, err
	}
	f := &follower{paths: paths, client: c, out: out, watcher: watcher, applied: map[string]object{}}
	if _, err := f.read(); err != nil {
		return nil, err
	}
	return f, nil
}

// read reads the files, and again when a directory was added meanwhile.
func (f *follower) read() ([]object, error) {
	for {
		objects, dirs, err := readObjects(f.paths)
		if err != nil {
			return nil, err
		}
		news, err := f.watcher.Watch(dirs)
		if err != nil || !news {
			return objects, err
		}
	}
}

// remember takes what was applied already.
func (f *follower) remember(objects []object) {
	for _, u := range objects {
		f.applied[objectName(u)] = u.DeepCopy()
	}
}

// run applies changes until ctx ends.
func (f *follower) run(ctx context.Context) {
	defer func() { _ = f.watcher.Close() }() // nothing is watched any more either way
	for {
		// First, because something may have changed since it was read.
		f.apply(ctx)
		if err := f.watcher.Wait(ctx); err != nil {
			if ctx.Err() == nil {
				fmt.Fprintf(f.out, "lambdamesh: changed files are not applied any more: %v\n", err)
			}
			return
		}
	}
}

func (f *follower) apply(ctx context.Context) {
	objects, err := f.read()
	if err != nil {
		fmt.Fprintf(f.out, "  not applied: %s\n", strings.ReplaceAll(err.Error(), "\n", "\n    "))
		return
	}
	var changed []object
	for _, u := range objects {
		before, known := f.applied[nameIn(f.client, u)]
		if !known || !equality.Semantic.DeepEqual(before.Object, u.Object) {
			changed = append(changed, u)
		}
	}
	for _, u := range applyObjects(ctx, f.client, changed, f.out) {
		fmt.Fprintf(f.out, "  applied %s\n", objectName(u))
	}
	f.remember(changed) // what was refused is so until it changes
}

// nameIn is the object's name once it has its namespace.
func nameIn(c client.Client, u object) string {
	withNamespace(c, u)
	return objectName(u)
}
