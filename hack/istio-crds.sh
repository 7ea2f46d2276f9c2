#!/bin/sh
# Copies Istio's CustomResourceDefinitions out of the module istio.io/istio:
#
#   hack/istio-crds.sh v0.0.0-20260827124520-eed52ebb66ad "Istio 1.31"
set -eu

version=${1:?usage: hack/istio-crds.sh MODULE-VERSION DESCRIPTION}
description=${2:?usage: hack/istio-crds.sh MODULE-VERSION DESCRIPTION}
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
target=$root/manifests/istio/crd-all.gen.yaml

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cd "$scratch"
printf 'module scratch\n\ngo 1.26.0\n' >go.mod
dir=$(GOWORK=off go mod download -json "istio.io/istio@$version" | sed -n 's/^[[:space:]]*"Dir": "\(.*\)",\{0,1\}$/\1/p')
[ -f "$dir/manifests/charts/base/files/crd-all.gen.yaml" ] || {
	echo "istio.io/istio $version cannot be downloaded or has no such file any more" >&2
	exit 1
}
{
	cat <<END
# Copied unchanged from manifests/charts/base/files/crd-all.gen.yaml of the Go
# module istio.io/istio $version ($description).
# Copyright Istio Authors. SPDX-License-Identifier: Apache-2.0
# Replace the file as a whole to move to another version: hack/istio-crds.sh.
END
	cat "$dir/manifests/charts/base/files/crd-all.gen.yaml"
} >"$scratch/crds.yaml"
mv -f "$scratch/crds.yaml" "$target"
