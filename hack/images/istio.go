package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/lambdamesh/lambdamesh/hack/images/internal/layer"
	"github.com/lambdamesh/lambdamesh/hack/images/internal/oci"
	"github.com/lambdamesh/lambdamesh/hack/images/internal/program"
	"github.com/lambdamesh/lambdamesh/hack/images/internal/sbom"
)

// Where Istio's images have things.
const (
	istioUser      = "1337:1337"
	istioBootstrap = "/var/lib/istio/envoy/envoy_bootstrap_tmpl.json"
)

// istio are the images pilot and proxyv2 as Istio's charts expect them, of the
// programs that hack/istio/get.sh built for this machine; the proxy's envoy is
// ours.
func (b *builder) istio(ctx context.Context, dir string) ([]oci.Spec, error) {
	if len(b.platforms) != 1 {
		return nil, fmt.Errorf("istio's programs are built for one platform, not for %d", len(b.platforms))
	}
	platform := b.platforms[0]
	ours, err := program.Builder{Root: b.root, Version: b.source.Version, Report: b.report}.Build(ctx, platform, []string{"proxy"})
	if err != nil {
		return nil, err
	}
	specs := []oci.Spec{
		{Name: "pilot", Description: "istiod, for tests of Lambdamesh"},
		{Name: "proxyv2", Description: "Istio's agent with the proxy of Lambdamesh as its envoy, for tests"},
	}
	parts := [][]istioFile{
		{{program.Dir + "/pilot-discovery", filepath.Join(dir, "pilot-discovery"), 0o755}},
		{
			{program.Dir + "/pilot-agent", filepath.Join(dir, "pilot-agent"), 0o755},
			{program.Dir + "/envoy", ours["proxy"], 0o755},
			{istioBootstrap, filepath.Join(dir, "envoy_bootstrap.json"), 0o644},
		},
	}
	for i, files := range parts {
		top, err := b.istioLayer(files)
		if err != nil {
			return nil, err
		}
		var packages []sbom.Package
		for _, file := range files {
			if file.mode&0o111 == 0 {
				continue
			}
			modules, err := program.Modules(file.from)
			if err != nil {
				return nil, err
			}
			for _, module := range modules {
				packages = append(packages, sbom.GoModule(module.Path, module.Version))
			}
		}
		specs[i].Tags = []string{b.source.Tag}
		specs[i].Config = v1.Config{User: istioUser, WorkingDir: "/", Entrypoint: []string{files[0].name}, Env: environment()}
		specs[i].Platforms = []oci.Platform{{
			Platform: platform, Parts: packages,
			Layers: []oci.Layer{b.base, {Layer: top, CreatedBy: "hack/istio/get.sh"}},
		}}
	}
	return specs, nil
}

type istioFile struct {
	name, from string
	mode       int64
}

func (b *builder) istioLayer(files []istioFile) (v1.Layer, error) {
	key := []string{"istio"}
	for _, file := range files {
		sum, err := layer.HashFile(file.from)
		if err != nil {
			return nil, err
		}
		key = append(key, file.name, sum)
	}
	return b.cache.Layer(key, func(w *layer.Writer) error {
		for _, file := range files {
			data, err := os.ReadFile(file.from)
			if err != nil {
				return err
			}
			if err := w.File(file.name, file.mode, data); err != nil {
				return err
			}
		}
		return nil
	})
}
