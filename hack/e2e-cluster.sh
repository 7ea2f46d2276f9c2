#!/bin/sh
# The tests behind `make e2e-cluster`: starts a cluster of its own, pushes the
# images to it, drives an installation on it (e2e/cluster), and ends it.
#
#   KUBECONFIG=... REGISTRY=host/path make e2e-cluster   takes a cluster that runs, by
#                   its current context, and leaves it as it was. hack/cluster/README.md
#                   says what it needs; no node is killed there
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
trap 'exit 130' INT
trap 'exit 143' TERM HUP
architecture=$(go env GOHOSTARCH)
if [ -n "${KUBECONFIG:-}" ]; then
	: "${REGISTRY:?say by REGISTRY=host/path where images go that the nodes of $KUBECONFIG pull}"
	name=
	kubectl=$(hack/kubernetes/get.sh --dir)/kubectl
	# One context of one file, whatever else is changed or switched meanwhile.
	own=$(mktemp -d)
	trap 'rm -rf "$own"' EXIT
	"$kubectl" config view --raw --flatten --minify >"$own/kubeconfig"
	KUBECONFIG=$own/kubeconfig
	export KUBECONFIG
	nodes=$("$kubectl" get nodes --request-timeout=20s -o 'jsonpath={range .items[*]}{.status.nodeInfo.operatingSystem}/{.status.nodeInfo.architecture}{"\n"}{end}')
	if printf '%s\n' "$nodes" | grep -qvx "linux/$architecture"; then
		echo "the nodes are $(printf '%s ' $nodes), and the tests bring what runs in pods for linux/$architecture: run them on a machine of the nodes' architecture" >&2
		exit 1
	fi
	echo "testing on the cluster of the context $("$kubectl" config current-context)" >&2
else
	program=$(hack/cluster/get.sh --program)
	code=0
	why=$("$program" check 2>&1) || code=$?
	if [ "$code" != 0 ]; then
		printf 'LEFT OUT: the tests of an installation on real nodes: %s\n' "$why" >&2
		[ -z "${LAMBDAMESH_CLUSTER_REQUIRED:-}" ] && [ "$code" = 77 ] || exit 1
		exit 0
	fi
	# A start that fails or is interrupted ends itself what it began.
	exports=$(hack/cluster/run up --name "$name" --nodes "${NODES:-2}")
	case $exports in
	*'# started'*) [ -n "${KEEP:-}" ] || trap 'hack/cluster/run down --name "$name"' EXIT ;;
	*) echo "testing on the cluster $name, which runs already and stays" >&2 ;;
	esac
	eval "$exports"
fi
# As a release would: the images that the chart and the overlays name.
version=$(sed -n 's/^appVersion: //p' manifests/charts/lambdamesh/Chart.yaml)
hack/images/run push --version "$version" --platforms "linux/$architecture" "$REGISTRY/lambdamesh"

mesh=${MESH:-envoy}
if [ "$mesh" = istio ]; then
	hub=${ISTIO_HUB:-}
	tag=${ISTIO_TAG:-}
	if [ -z "$hub" ]; then
		programs=$(hack/istio/get.sh --node)
		hack/images/run istio --version "$version" --programs "$programs" --platforms "linux/$architecture" "$REGISTRY/lambdamesh-e2e/istio"
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
