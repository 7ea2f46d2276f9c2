#!/bin/sh
# Installs Istio's control plane on the cluster of KUBECONFIG for the tests on real
# nodes, with Istio's own charts of the version in this folder's go.mod: istiod,
# its webhooks, and sidecar.yaml.
#
# Usage: hack/istio/install.sh HUB TAG    images are HUB/pilot:TAG and HUB/proxyv2:TAG
set -eu

hub=${1:?usage: hack/istio/install.sh HUB TAG}
tag=${2:?usage: hack/istio/install.sh HUB TAG}
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
cd "$here/../.."
charts=$(hack/istio/get.sh --node)/charts
kubectl=$(hack/kubernetes/get.sh --dir)/kubectl

hack/tools/run helm upgrade --install istio-base "$charts/base" --namespace istio-system --create-namespace >&2
hack/tools/run helm upgrade --install istiod "$charts/istiod" --namespace istio-system --values hack/istio/values.yaml \
	--set global.hub="$hub" --set global.tag="$tag" >&2
"$kubectl" rollout status -n istio-system deployment/istiod --timeout=5m >&2
"$kubectl" apply -f hack/istio/sidecar.yaml >&2
