// Package oci puts layers together to images of several platforms, and writes
// those to files and registries.
package oci

import (
	"fmt"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/lambdamesh/lambdamesh/hack/images/internal/sbom"
)

// Source is where all images come from, and when and as what.
type Source struct {
	Registry string // and the path before the images' names: ghcr.io/lambdamesh
	Version  string
	Tag      string
	Revision string // the commit
	Created  time.Time
}

// Spec is an image of one name.
type Spec struct {
	Name        string
	Description string
	Tags        []string
	Config      v1.Config
	Platforms   []Platform
}

// Platform is what the image is on one platform.
type Platform struct {
	v1.Platform
	Layers []Layer
	Parts  []sbom.Package
}

// Layer and what made it, for `docker history`.
type Layer struct {
	v1.Layer
	CreatedBy string
}

// Image has an index of its platforms and what refers to them.
type Image struct {
	Name, Description string
	Tags              []string
	Index             v1.ImageIndex
	Platforms         []v1.Image
	SBOMs             []v1.Image // of each platform
}

// Assemble returns the image; equal arguments give equal digests.
func Assemble(source Source, spec Spec) (*Image, error) {
	image := &Image{Name: spec.Name, Description: spec.Description, Tags: spec.Tags}
	annotations := source.annotations(spec)
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, platform := range spec.Platforms {
		built, err := source.platform(spec, platform, annotations)
		if err != nil {
			return nil, fmt.Errorf("put the image %s together for %s: %w", spec.Name, platform, err)
		}
		document, err := source.document(spec, platform, built)
		if err != nil {
			return nil, err
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{
			Add: built, Descriptor: v1.Descriptor{Platform: &platform.Platform},
		})
		image.Platforms = append(image.Platforms, built)
		image.SBOMs = append(image.SBOMs, document)
	}
	image.Index = annotated(index, annotations)
	return image, nil
}

// annotations are the labels as well, for who looks there.
func (s Source) annotations(spec Spec) map[string]string {
	return map[string]string{
		"org.opencontainers.image.title":       spec.Name,
		"org.opencontainers.image.description": spec.Description,
		"org.opencontainers.image.source":      "https://github.com/lambdamesh/lambdamesh",
		"org.opencontainers.image.licenses":    "Apache-2.0",
		"org.opencontainers.image.revision":    s.Revision,
		"org.opencontainers.image.version":     s.Version,
		"org.opencontainers.image.created":     s.Created.UTC().Format(time.RFC3339),
	}
}

func (s Source) platform(spec Spec, platform Platform, annotations map[string]string) (v1.Image, error) {
	image := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	for _, layer := range platform.Layers {
		var err error
		image, err = mutate.Append(image, mutate.Addendum{
			Layer: layer.Layer, History: v1.History{Created: v1.Time{Time: s.Created.UTC()}, CreatedBy: layer.CreatedBy},
		})
		if err != nil {
			return nil, err
		}
	}
	config, err := image.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture, config.Variant = platform.OS, platform.Architecture, platform.Variant
	config.Created = v1.Time{Time: s.Created.UTC()}
	config.Config = *spec.Config.DeepCopy()
	config.Config.Labels = annotations
	image, err = mutate.ConfigFile(image, config)
	if err != nil {
		return nil, err
	}
	return annotated(image, annotations), nil
}

// document is the SBOM as an artifact that refers to the image; its type is the
// config's (OCI image specification, "Guidelines for Artifact Usage").
func (s Source) document(spec Spec, platform Platform, image v1.Image) (v1.Image, error) {
	subject, err := partial.Descriptor(image)
	if err != nil {
		return nil, err
	}
	data, err := sbom.Document(sbom.Image{
		Name: "lambdamesh/" + spec.Name, Version: s.Version, Digest: subject.Digest.Hex,
		Arch: platform.Architecture, Created: s.Created,
	}, platform.Parts)
	if err != nil {
		return nil, err
	}
	artifact := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), sbom.MediaType)
	artifact, err = mutate.AppendLayers(artifact, static.NewLayer(data, sbom.MediaType))
	if err != nil {
		return nil, err
	}
	artifact = annotated(artifact, map[string]string{
		"org.opencontainers.image.title":   spec.Name + ".spdx.json",
		"org.opencontainers.image.created": s.Created.UTC().Format(time.RFC3339),
	})
	referring := mutate.Subject(artifact, *subject)
	return referring.(v1.Image), nil //nolint:errcheck // documented: what it is given, it returns
}

// annotated is mutate.Annotations, which returns an image for an image and an
// index for an index.
func annotated[T partial.WithRawManifest](of T, annotations map[string]string) T {
	return mutate.Annotations(of, annotations).(T) //nolint:errcheck // see above
}
