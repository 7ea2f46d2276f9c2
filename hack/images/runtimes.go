package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/lambdamesh/lambdamesh/hack/images/internal/base"
	"github.com/lambdamesh/lambdamesh/hack/images/internal/debian"
	"github.com/lambdamesh/lambdamesh/hack/images/internal/layer"
	"github.com/lambdamesh/lambdamesh/hack/images/internal/oci"
	"github.com/lambdamesh/lambdamesh/hack/images/internal/progress"
	"github.com/lambdamesh/lambdamesh/hack/images/internal/python"
)

// language is an image that lambdas of a language run from. The control plane
// mounts the runtime's server and the lambda's source, so that the server is
// always the one it knows.
type language struct {
	name, description string
	root              string // Debian's package
	interpreter       string
	// parts of the package's version that make the language's: 20 of 20.19.2.
	parts int
	// compile returns a layer for all architectures, or none.
	compile func(context.Context, *layer.Cache, *debian.Apt, debian.Set) (v1.Layer, error)
}

func languages() []language {
	return []language{
		{"runtime-nodejs", "Node.js for lambdas of Lambdamesh", "nodejs", "/usr/bin/node", 1, nil},
		{"runtime-python", "Python for lambdas of Lambdamesh", "python3", "/usr/bin/python3", 2, python.Layer},
	}
}

func lockFile(root string) string { return filepath.Join(root, "hack", "images", "debian.lock") }

// lock writes down the packages of today.
func lock(ctx context.Context, report *progress.Reporter, o options) error {
	apt, err := debian.NewApt(filepath.Join(o.cache, "debian"), report)
	if err != nil {
		return err
	}
	var fresh debian.Lock
	for _, l := range languages() {
		for _, arch := range []string{"amd64", "arm64"} {
			set, err := apt.Resolve(ctx, l.root, arch)
			if err != nil {
				return err
			}
			report.Say("%s for %s: %d packages, %s %s", l.name, arch, len(set.Packages), l.root, set.Version(l.root))
			fresh = append(fresh, set)
		}
	}
	return fresh.Write(lockFile(o.root))
}

func (b *builder) runtimes(ctx context.Context, dir string, locked bool) ([]oci.Spec, error) {
	var wanted []language
	for _, l := range languages() {
		if b.wants(l.name) {
			wanted = append(wanted, l)
		}
	}
	if len(wanted) == 0 {
		return nil, nil
	}
	apt, err := debian.NewApt(dir, b.report)
	if err != nil {
		return nil, err
	}
	var specs []oci.Spec
	for _, l := range wanted {
		spec, err := b.runtime(ctx, apt, l, locked)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", l.name, err)
		}
		specs = append(specs, spec)
	}
	return specs, nil
}

func (b *builder) runtime(ctx context.Context, apt *debian.Apt, l language, locked bool) (oci.Spec, error) {
	spec := oci.Spec{
		Name: l.name, Description: l.description, Tags: []string{b.source.Tag},
		Config: v1.Config{
			User: base.User, WorkingDir: "/", Entrypoint: []string{l.interpreter},
			Env: environment("LANG=C.UTF-8"),
		},
	}
	lock, err := debian.ReadLock(lockFile(b.root))
	if err != nil {
		return spec, err
	}
	compiled, err := b.compiled(ctx, apt, lock, l, locked)
	if err != nil {
		return spec, err
	}
	for _, platform := range b.platforms {
		set, err := b.fetch(ctx, apt, lock, l, platform.Architecture, locked)
		if err != nil {
			return spec, err
		}
		var top v1.Layer
		err = b.report.Step(fmt.Sprintf("write the layer of %s for %s", l.name, platform), nil, func() (err error) {
			top, err = apt.Layer(ctx, b.cache, set)
			return err
		})
		if err != nil {
			return spec, err
		}
		version := set.Version(l.root)
		// Lambdas that ask for this version of the language find it.
		if alias := l.version(version) + "-" + b.source.Tag; !slices.Contains(spec.Tags, alias) {
			spec.Tags = append(spec.Tags, alias)
		}
		spec.Platforms = append(spec.Platforms, oci.Platform{
			Platform: platform, Parts: set.Parts(),
			Layers: append([]oci.Layer{b.base, {Layer: top, CreatedBy: l.root + " " + version + " of Debian, with what it needs"}}, compiled...),
		})
	}
	return spec, nil
}

// compiled is what the language's compiler of this machine's architecture makes
// for all.
func (b *builder) compiled(ctx context.Context, apt *debian.Apt, lock debian.Lock, l language, locked bool) ([]oci.Layer, error) {
	if l.compile == nil {
		return nil, nil
	}
	set, err := b.fetch(ctx, apt, lock, l, runtime.GOARCH, locked)
	if err != nil {
		return nil, err
	}
	var made v1.Layer
	err = b.report.Step("compile the modules of "+l.name, nil, func() (err error) {
		made, err = l.compile(ctx, b.cache, apt, set)
		return err
	})
	return []oci.Layer{{Layer: made, CreatedBy: "modules of " + l.root + ", compiled"}}, err
}

// fetch gets the packages of the lock's set, or, where Debian no longer has one
// of them, all in the versions of today.
func (b *builder) fetch(ctx context.Context, apt *debian.Apt, lock debian.Lock, l language, arch string, locked bool) (debian.Set, error) {
	set, ok := lock.Set(l.root, arch)
	if !ok {
		return set, fmt.Errorf("debian.lock has no %s for %s: make images-lock, on amd64 or arm64", l.root, arch)
	}
	err := apt.Fetch(ctx, set)
	if !errors.Is(err, debian.ErrGone) {
		return set, err
	}
	if locked {
		return set, fmt.Errorf("debian.lock: %w; make images-lock takes those (commit the change)", err)
	}
	b.report.Say("%v: taking those, so this image is another than the commit gave before; make images-lock writes them down", err)
	set, err = apt.Resolve(ctx, set.Root, set.Arch)
	if err != nil {
		return set, err
	}
	return set, apt.Fetch(ctx, set)
}

// version of the language: 20 or 3.13, of 20.19.2+dfsg-1 or 3.13.5-1.
func (l language) version(debian string) string {
	upstream, _, _ := strings.Cut(debian, "-")
	parts := strings.SplitN(upstream, ".", l.parts+1)
	return strings.Join(parts[:min(l.parts, len(parts))], ".")
}
