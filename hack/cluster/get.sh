#!/bin/sh
# Builds what a node runs beside Kubernetes' own programs, and the program
# `cluster` of this folder, into the cache, each by its version:
#
#   ${LAMBDAMESH_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/lambdamesh}/
#     containerd/<version>/linux-<arch>/{containerd,containerd-shim-runc-v2}
#     coredns/<version>/linux-<arch>/coredns
#     cluster/<checksum of its sources>-<go>-<arch>/{cluster,pause}
#
# All of it comes from the Go module proxy and is checked against go.sum. runc
# and the CNI plugins are the distribution's packages. What is there stays.
#
# Usage: hack/cluster/get.sh            fill the cache, Kubernetes included; prints
#                                       the folders of the programs as a PATH
#        hack/cluster/get.sh --program  only `cluster`; prints where it is
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)

say() { printf 'cluster: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

[ "$(uname -s)" = Linux ] || die "real nodes need Linux, and this is $(uname -s); \`make run\` needs no cluster"
command -v go >/dev/null 2>&1 || die "no Go found; install Go 1.26 or newer (https://go.dev/dl)"
cache=${LAMBDAMESH_CACHE:-${XDG_CACHE_HOME:-${HOME:?set HOME or LAMBDAMESH_CACHE}/.cache}/lambdamesh}
arch=$(go env GOHOSTARCH)
export GOWORK=off GOOS=linux GOARCH="$arch" CGO_ENABLED=0 GOFLAGS=-buildvcs=false

# version MODULE-FOLDER MODULE: the version that the folder's go.mod pins.
version() {
	v=$(sed -n "s|^\(require \)\{0,1\}[[:space:]]*$2 \(v[^ ]*\).*|\2|p" "$here/$1/go.mod" | head -n 1)
	[ -n "$v" ] || die "found no version of $2 in $here/$1/go.mod"
	printf '%s' "$v"
}

tmp=
reporter=
cleanup() {
	[ -z "$reporter" ] || kill "$reporter" 2>/dev/null || true
	[ -z "$tmp" ] || rm -rf "$tmp"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# build FOLDER MODULE-FOLDER NAME GO-BUILD-ARGUMENTS...: builds into a folder of
# the cache. It arrives by one rename, so an interrupted build leaves no half of
# it, and of two builds at once the first wins.
build() {
	folder=$1 module=$2 name=$3
	shift 3
	[ ! -d "$folder" ] || return 0
	mkdir -p "$(dirname "$folder")"
	tmp=$(mktemp -d "$folder.XXXXXX")
	chmod 755 "$tmp"
	started=$(date +%s)
	(
		while sleep 5; do
			say "building $name: $(grep -c '^[^ ]*$' "$tmp/.log") packages compiled after $(($(date +%s) - started)) s; later checkouts find it built"
		done
	) &
	reporter=$!
	(cd "$module" && go build -v -o "$tmp/" "$@" 2>"$tmp/.log") || {
		grep -v -e '^[^ #]*$' -e '^go: downloading' "$tmp/.log" >&2 || true
		die "the build of $name failed"
	}
	kill "$reporter"
	reporter=
	rm -f "$tmp/.log"
	mv -T "$tmp" "$folder" 2>/dev/null || rm -rf "$tmp"
	tmp=
}

# Its tests are no part of the program, and a checkout of the same sources finds it.
sum=$(cd "$here" && find . -path ./containerd -prune -o -path ./coredns -prune -o -type f \
	! -name '*_test.go' ! -name '*.md' ! -name '*.sh' ! -path '*/testdata/*' -print | LC_ALL=C sort | xargs cat | cksum | cut -d' ' -f1)
program=$cache/cluster/$sum-$(go env GOVERSION)-$arch
build "$program" "$here" cluster . ./pause
if [ "${1:-}" = --program ]; then
	printf '%s\n' "$program/cluster"
	exit 0
fi

"$here/../kubernetes/get.sh" --nodes

# Without a version `kubectl get nodes -o wide` shows containerd://<unknown>.
v=$(version containerd github.com/containerd/containerd/v2)
containerd=$cache/containerd/$v/linux-$arch
build "$containerd" "$here/containerd" containerd \
	-tags "osusergo netgo no_btrfs no_zfs no_devmapper" \
	-ldflags "-s -w -X github.com/containerd/containerd/v2/version.Version=$v" \
	github.com/containerd/containerd/v2/cmd/containerd github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2
v=$(version coredns github.com/coredns/coredns)
coredns=$cache/coredns/$v/linux-$arch
build "$coredns" "$here/coredns" coredns -ldflags "-s -w" .
printf '%s\n' "$("$here/../kubernetes/get.sh" --dir):$containerd:$coredns:$program"
