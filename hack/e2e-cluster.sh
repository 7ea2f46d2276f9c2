#!/bin/sh
# The tests behind `make e2e-cluster`: starts a cluster of its own, pushes the
# images to it, drives an installation on it (e2e/cluster), and ends it.
#
#   KUBECONFIG=... REGISTRY=host/path make e2e-cluster   takes a cluster that runs:
#                   images go to the registry, which its nodes pull from; it must
#                   have no namespace lambdamesh-system
#   KEEP=1          leaves the cluster as it is in the end, to look at it
#   MESH=istio      with Istio in the cluster: istiod and Istio's agent are built from
#                   the Go module proxy (hack/istio), and the agent's Envoy is our
#                   proxy. ISTIO_HUB=docker.io/istio ISTIO_TAG=1.29.0 takes real images.
#                   On a cluster of your own it installs into istio-system.
#
# Where no cluster can run it says so; with LAMBDAMESH_CLUSTER_REQUIRED=1 that is
# a failure.
#
# Usage: hack/e2e-cluster.sh [FLAGS OF go test]
set -eu

cd "$(dirname -- "$0")/.."

name=${NAME:-e2e}
[ "$name" != mesh ] || name=e2e # what `make cluster` starts is somebody's
if [ -n "${KUBECONFIG:-}" ]; then
	: "${REGISTRY:?say by REGISTRY=host/path where images go that the nodes of $KUBECONFIG pull}"
	name=
	echo "testing on the cluster of $KUBECONFIG" >&2
else
	program=$(hack/cluster/get.sh --program)
	if ! why=$("$program" check 2>&1); then
		printf 'LEFT OUT: the tests of an installation on real nodes: %s\n' "$why" >&2
		[ -z "${LAMBDAMESH_CLUSTER_REQUIRED:-}" ] || exit 1
		exit 0
	fi
	[ -n "${KEEP:-}" ] || trap 'hack/cluster/run down --name "$name"' EXIT
	trap 'exit 130' INT
	trap 'exit 143' TERM HUP
	exports=$(hack/cluster/run up --name "$name" --nodes "${NODES:-2}")
	eval "$exports"
fi
# As a release would: the images that the chart and the overlays name.
version=$(sed -n 's/^appVersion: //p' manifests/charts/lambdamesh/Chart.yaml)
hack/images/run push --version "$version" --platforms "linux/$(go env GOHOSTARCH)" "$REGISTRY/lambdamesh"

mesh=${MESH:-envoy}
if [ "$mesh" = istio ]; then
	hub=${ISTIO_HUB:-}
	tag=${ISTIO_TAG:-}
	if [ -z "$hub" ]; then
		programs=$(hack/istio/get.sh --node)
		hack/images/run istio --version "$version" --programs "$programs" --platforms "linux/$(go env GOHOSTARCH)" "$REGISTRY/lambdamesh-e2e/istio"
		# Nodes of `make cluster` ask the cluster's registry for any.
		hub=$REGISTRY/lambdamesh-e2e/istio
		[ -z "$name" ] || hub=ghcr.io/lambdamesh-e2e/istio
		tag=$(printf %s "$version" | tr + -)
	fi
	hack/istio/install.sh "$hub" "${tag:?say by ISTIO_TAG which of the images of ISTIO_HUB}"
fi

LAMBDAMESH_E2E_CLUSTER=$KUBECONFIG LAMBDAMESH_E2E_REGISTRY=$REGISTRY LAMBDAMESH_E2E_NAME=$name LAMBDAMESH_E2E_MESH=$mesh \
	LAMBDAMESH_BIN=$PWD/bin LAMBDAMESH_CLUSTER_REQUIRED=1 \
	CGO_ENABLED=0 go test -count=1 -timeout 60m -v "$@" ./e2e/cluster
