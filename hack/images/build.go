package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/lambdamesh/lambdamesh/hack/images/internal/base"
	"github.com/lambdamesh/lambdamesh/hack/images/internal/layer"
	"github.com/lambdamesh/lambdamesh/hack/images/internal/oci"
	"github.com/lambdamesh/lambdamesh/hack/images/internal/program"
	"github.com/lambdamesh/lambdamesh/hack/images/internal/progress"
	"github.com/lambdamesh/lambdamesh/hack/images/internal/sbom"
)

// programs of cmd/ that have an image, and what they are.
func programs() []described {
	return []described{
		{"controlplane", "Lambdamesh control plane: configures the mesh and runs lambdas"},
		{"eventbus", "Lambdamesh event bus: takes CloudEvents and delivers them"},
		{"connector", "Lambdamesh connector: external applications in the mesh"},
		{"proxy", "Lambdamesh proxy: gateway and sidecar, configured over Envoy's xDS"},
	}
}

type described struct{ name, description string }

type builder struct {
	root      string
	report    *progress.Reporter
	cache     *layer.Cache
	source    oci.Source
	platforms []v1.Platform
	base      oci.Layer
	wanted    []string // names; empty: all
}

func build(ctx context.Context, report *progress.Reporter, o options, platforms []v1.Platform) (oci.Source, []*oci.Image, error) {
	source, err := describe(ctx, o)
	if err != nil {
		return oci.Source{}, nil, err
	}
	cache, err := layer.NewCache(filepath.Join(o.cache, "layers"))
	if err != nil {
		return oci.Source{}, nil, err
	}
	goroot, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output()
	if err != nil {
		return oci.Source{}, nil, fmt.Errorf("go env GOROOT: %w", err)
	}
	bottom, err := base.Layer(cache, strings.TrimSpace(string(goroot)))
	if err != nil {
		return oci.Source{}, nil, err
	}
	b := &builder{
		root: o.root, report: report, cache: cache, source: source, platforms: platforms,
		base: oci.Layer{Layer: bottom, CreatedBy: "certificate roots, time zones, users"},
	}
	if o.only != "" {
		b.wanted = strings.Split(o.only, ",")
	}
	specs, err := b.specs(ctx, o)
	if err != nil {
		return source, nil, err
	}
	var images []*oci.Image
	for _, spec := range specs {
		image, err := oci.Assemble(source, spec)
		if err != nil {
			return source, nil, err
		}
		images = append(images, image)
	}
	if len(images) == 0 {
		return source, nil, fmt.Errorf("IMAGES=%s names no image", o.only)
	}
	return source, images, nil
}

func (b *builder) specs(ctx context.Context, o options) ([]oci.Spec, error) {
	if o.programs != "" {
		return b.istio(ctx, o.programs)
	}
	specs, err := b.programs(ctx)
	if err != nil {
		return nil, err
	}
	runtimes, err := b.runtimes(ctx, filepath.Join(o.cache, "debian"), o.locked)
	return append(specs, runtimes...), err
}

// describe tells the version and the commit of the checkout. Everything that
// carries a time carries the commit's.
func describe(ctx context.Context, o options) (oci.Source, error) {
	if o.version == "" {
		return oci.Source{}, errors.New("--version is missing")
	}
	source := oci.Source{
		Registry: o.registry, Version: o.version, Revision: "unknown", Created: time.Unix(0, 0),
		// A '+' may stand in versions and not in tags.
		Tag: strings.ReplaceAll(o.version, "+", "-"),
	}
	commit, err := exec.CommandContext(ctx, "git", "-C", o.root, "log", "-1", "--format=%H %ct").Output()
	if err == nil {
		revision, seconds, _ := strings.Cut(strings.TrimSpace(string(commit)), " ")
		source.Revision = revision
		if err := setCreated(&source, seconds); err != nil {
			return source, err
		}
	}
	if seconds := os.Getenv("SOURCE_DATE_EPOCH"); seconds != "" {
		return source, setCreated(&source, seconds)
	}
	return source, nil
}

func setCreated(source *oci.Source, seconds string) error {
	unix, err := strconv.ParseInt(seconds, 10, 64)
	if err != nil {
		return fmt.Errorf("the time of the sources, in seconds since 1970: %w", err)
	}
	source.Created = time.Unix(unix, 0)
	return nil
}

func (b *builder) wants(name string) bool {
	return len(b.wanted) == 0 || slices.Contains(b.wanted, name)
}

func (b *builder) programs(ctx context.Context) ([]oci.Spec, error) {
	var specs []oci.Spec
	var names []string
	for _, p := range programs() {
		if !b.wants(p.name) {
			continue
		}
		_, err := os.Stat(filepath.Join(b.root, "cmd", p.name))
		if errors.Is(err, fs.ErrNotExist) {
			b.report.Say("left out %s: this checkout has no cmd/%s", p.name, p.name)
			continue
		}
		if err != nil {
			return nil, err
		}
		names = append(names, p.name)
		specs = append(specs, oci.Spec{
			Name: p.name, Description: p.description, Tags: []string{b.source.Tag},
			Config: v1.Config{
				User: base.User, WorkingDir: "/", Entrypoint: []string{program.Dir + "/" + p.name},
				Env: environment(),
			},
		})
	}
	if len(names) == 0 {
		return nil, nil
	}
	compiler := program.Builder{Root: b.root, Version: b.source.Version, Report: b.report}
	for _, platform := range b.platforms {
		files, err := compiler.Build(ctx, platform, names)
		if err != nil {
			return nil, err
		}
		for i, name := range names {
			built, err := b.program(name, files[name], platform)
			if err != nil {
				return nil, err
			}
			specs[i].Platforms = append(specs[i].Platforms, built)
		}
	}
	return specs, nil
}

func (b *builder) program(name, file string, platform v1.Platform) (oci.Platform, error) {
	var top v1.Layer
	err := b.report.Step(fmt.Sprintf("write the layer of %s for %s", name, platform), nil, func() (err error) {
		top, err = program.Layer(b.cache, name, file)
		return err
	})
	if err != nil {
		return oci.Platform{}, err
	}
	modules, err := program.Modules(file)
	if err != nil {
		return oci.Platform{}, err
	}
	parts := []sbom.Package{sbom.GoModule("github.com/lambdamesh/lambdamesh", b.source.Version)}
	for _, module := range modules {
		parts = append(parts, sbom.GoModule(module.Path, module.Version))
	}
	return oci.Platform{
		Platform: platform, Parts: parts,
		Layers: []oci.Layer{b.base, {Layer: top, CreatedBy: "go build ./cmd/" + name}},
	}, nil
}

// environment of all images. PATH is where Debian's packages and we put
// programs; the roots are named for libraries that look elsewhere.
func environment(more ...string) []string {
	return append([]string{"PATH=/usr/local/bin:/usr/bin:/bin", "SSL_CERT_FILE=" + base.Roots}, more...)
}
