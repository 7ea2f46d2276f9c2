#!/bin/sh
# Builds istiod (pilot-discovery, Istio's control plane) of the version in this
# folder's go.mod from the Go module proxy into the cache, for the tests that
# LAMBDAMESH_ISTIOD guards, and prints where it is:
#
#   ${LAMBDAMESH_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/lambdamesh}/istio/<version>/<os>-<arch>/pilot-discovery
#
# With --node also pilot-agent, which runs beside each proxy, the bootstrap that
# it makes for a proxy, and Istio's charts: all that `make e2e-cluster MESH=istio`
# needs.
#
# Everything is checked against go.sum. What is there already stays.
#
# Usage: hack/istio/get.sh         fill the cache; prints the program's path
#        hack/istio/get.sh --node  the same; prints the folder with all of it
#        hack/istio/get.sh --path  only prints the program's path
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)

say() { printf 'istiod: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

command -v go >/dev/null 2>&1 || die "no Go found; install Go 1.26 or newer (https://go.dev/dl)"
cd "$here"
version=$(sed -n 's|^[a-z[:space:]]*istio.io/istio \(v[^ ]*\).*|\1|p' go.mod)
[ -n "$version" ] || die "found no version of istio.io/istio in $here/go.mod"
os=$(go env GOHOSTOS)
arch=$(go env GOHOSTARCH)
cache=${LAMBDAMESH_CACHE:-${XDG_CACHE_HOME:-${HOME:?set HOME or LAMBDAMESH_CACHE}/.cache}/lambdamesh}
dir=$cache/istio/$version/$os-$arch
program=$dir/pilot-discovery
programs=pilot-discovery
wanted=$program
if [ "${1:-}" = --node ]; then
	programs='pilot-discovery pilot-agent'
	wanted=$dir
fi
missing=
for name in $programs; do
	[ -x "$dir/$name" ] || missing="$missing ./$name"
done
[ "${1:-}" != --node ] || [ -d "$dir/charts" ] || missing="$missing charts"
if [ "${1:-}" = --path ] || [ -z "$missing" ]; then
	printf '%s\n' "$wanted"
	exit 0
fi

mkdir -p "$dir" || die "cannot create $dir; set LAMBDAMESH_CACHE to a folder that can be written"
tmp=$(mktemp -d "$dir/.build.XXXXXX")
reporter=
cleanup() {
	[ -z "$reporter" ] || kill "$reporter" 2>/dev/null || true
	rm -rf "$tmp"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

started=$(date +%s)
elapsed() {
	t=$(($(date +%s) - started))
	printf '%dm%02ds' $((t / 60)) $((t % 60))
}

say "building$missing of $version from the Go module proxy into $dir"
say "that takes 4 to 8 minutes on 2 cores, once; every later checkout finds it built"
: >"$tmp/build.log"
(
	while sleep 5; do
		if [ ! -s "$tmp/packages" ]; then
			say "$(elapsed)  downloading modules"
		elif [ ! -s "$tmp/build.log" ]; then # all of them compiled by an earlier build
			say "$(elapsed)  linking"
		else
			say "$(elapsed)  compiled $(wc -l <"$tmp/build.log" | tr -d ' ') of at most $(wc -l <"$tmp/packages" | tr -d ' ') packages"
		fi
	done
) &
reporter=$!

export GOWORK=off GOOS="$os" GOARCH="$arch" CGO_ENABLED=0 GOFLAGS=-buildvcs=false
build=
for name in $missing; do
	[ "$name" = charts ] || build="$build $name"
done
if [ -n "$build" ]; then
	# shellcheck disable=SC2086 # a list of packages
	go list -deps $build >"$tmp/list" 2>"$tmp/list.log" || {
		tail -n 5 "$tmp/list.log" >&2
		die "cannot download the modules; check the network and GOPROXY (now $(go env GOPROXY))"
	}
	mv "$tmp/list" "$tmp/packages"
	# shellcheck disable=SC2086
	go build -v -ldflags "-s -w" -o "$tmp/" $build 2>"$tmp/build.log" || {
		grep -v '^[a-z0-9.-]*\(/[^ :]*\)*$' "$tmp/build.log" | tail -n 20 >&2 || true
		die "the build failed after $(elapsed)"
	}
	# By rename: an interrupted build leaves no half of it, and of two the last wins.
	for name in $build; do
		mv -f "$tmp/$name" "$dir/$name"
	done
fi
if [ "${1:-}" = --node ]; then
	module=$(go mod download -json "istio.io/istio@$version" | sed -n 's/^[[:space:]]*"Dir": "\(.*\)",\{0,1\}$/\1/p')
	[ -d "$module/manifests/charts" ] || die "the module of istio.io/istio $version cannot be downloaded or has no charts any more"
	cp "$module/tools/packaging/common/envoy_bootstrap.json" "$tmp/envoy_bootstrap.json"
	mkdir "$tmp/charts"
	cp -R "$module/manifests/charts/base" "$tmp/charts/base"
	cp -R "$module/manifests/charts/istio-control/istio-discovery" "$tmp/charts/istiod"
	chmod -R u+w "$tmp/charts" "$tmp/envoy_bootstrap.json"
	mv -f "$tmp/envoy_bootstrap.json" "$dir/envoy_bootstrap.json"
	[ -d "$dir/charts" ] || mv "$tmp/charts" "$dir/charts"
fi
say "ready after $(elapsed)"
printf '%s\n' "$wanted"
