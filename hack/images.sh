#!/bin/sh
# The images behind `make images`, built with ko: no Dockerfile, no container
# engine. Without KO_DOCKER_REPO they go into dist/images.tar (docker load,
# ctr images import, kind load image-archive) for this machine's architecture;
# with it they are pushed for all of .ko.yaml's and their digests printed.
#
# KO_DEFAULTBASEIMAGE takes another base image, from a mirror for example.
set -eu

version=${VERSION:-unknown}
export VERSION="$version" GOWORK=off GOFLAGS=-buildvcs=false
# What git describe says is no valid tag only where it holds a '+'.
tag=$(printf '%s' "$version" | tr '+' '-')

if [ -n "${KO_DOCKER_REPO:-}" ]; then
	exec hack/tools/run ko build --base-import-paths --tags "$tag" ./cmd/controlplane ./cmd/eventbus ./cmd/connector
fi
mkdir -p dist
KO_DOCKER_REPO=ghcr.io/lambdamesh hack/tools/run ko build --base-import-paths --tags "$tag" \
	--push=false --tarball dist/images.tar --platform "linux/$(go env GOARCH)" \
	./cmd/controlplane ./cmd/eventbus ./cmd/connector
echo "dist/images.tar holds ghcr.io/lambdamesh/{controlplane,eventbus,connector}:$tag" >&2
