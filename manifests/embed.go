package manifests

import "embed"

// CRDs holds the generated CustomResourceDefinitions of the group
// lambdamesh.dev, one YAML document per file in the folder "crds".
//
//go:embed crds/lambdamesh.dev_*.yaml
var CRDs embed.FS

// IstioCRDs holds Istio's CustomResourceDefinitions in the folder "istio", many
// YAML documents in one file. A cluster with Istio has them already; dev and
// the tests install these.
//
//go:embed istio/crd-all.gen.yaml
var IstioCRDs embed.FS
