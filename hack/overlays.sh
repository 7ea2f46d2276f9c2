#!/bin/sh
# The part of `make generate` that writes manifests/overlays from the chart, and
# the chart's copies of the CustomResourceDefinitions.
set -eu

chart=manifests/charts/lambdamesh
rm -rf "$chart/crds"
mkdir "$chart/crds"
cp manifests/crds/lambdamesh.dev_*.yaml "$chart/crds"
# Helm leaves alone those that a cluster with Istio has already.
cp manifests/istio/crd-all.gen.yaml "$chart/crds/istio.yaml"

# Helm knows only from a cluster which Kubernetes it has.
kubernetes=$(sed -n 's/^kubeVersion: ">=\([0-9.]*\).*/\1/p' "$chart/Chart.yaml")
for mesh in envoy istio; do
	{
		# shellcheck disable=SC2016 # the backquotes are text
		echo '# Rendered from manifests/charts/lambdamesh by `make generate`; not to be edited.'
		hack/tools/run helm template lambdamesh "$chart" --kube-version "$kubernetes" --set "mesh=$mesh"
	} >"manifests/overlays/$mesh/lambdamesh.yaml"
done
