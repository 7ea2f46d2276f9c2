#!/bin/sh
# Puts kube-apiserver, etcd, kube-controller-manager and kubectl of the version
# in this folder's go.mod into the cache, where `lambdamesh dev` and the tests
# look for them:
#
#   ${LAMBDAMESH_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/lambdamesh}/kubernetes/<version>/<os>-<arch>/
#
# What is there already stays. What is missing is downloaded where the network
# allows that, and otherwise built from the Go module proxy with nothing but Go.
# LAMBDAMESH_PREBUILT=0 skips the downloads.
#
# Usage: hack/kubernetes/get.sh          fill the cache
#        hack/kubernetes/get.sh --nodes  with kubelet, kube-proxy and kube-scheduler too
#        hack/kubernetes/get.sh --dir    only say which folder it is
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
programs="etcd kube-apiserver kube-controller-manager kubectl"
node_programs="kubelet kube-proxy kube-scheduler" # Linux only, for hack/cluster
[ "${1:-}" != --nodes ] || programs="$programs $node_programs"

say() { printf 'kubernetes: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

command -v go >/dev/null 2>&1 || die "no Go found; install Go 1.26 or newer (https://go.dev/dl)"
cd "$here"
# The module decides the version: what is cached under v1.36.3 is v1.36.3.
version=$(sed -n 's|^[[:space:]]*k8s.io/kubernetes \(v[^ ]*\).*|\1|p' go.mod | head -n 1)
[ -n "$version" ] || die "found no version of k8s.io/kubernetes in $here/go.mod"
os=$(go env GOHOSTOS)
arch=$(go env GOHOSTARCH)
cache=${LAMBDAMESH_CACHE:-${XDG_CACHE_HOME:-${HOME:?set HOME or LAMBDAMESH_CACHE}/.cache}/lambdamesh}
dir=$cache/kubernetes/$version/$os-$arch

if [ "${1:-}" = --dir ]; then
	printf '%s\n' "$dir"
	exit 0
fi

# A program counts once it and the marker with its origin are there. Both
# arrive by rename, the marker last, so an interrupted run leaves no half file.
have() { [ -x "$dir/$1" ] && [ -s "$dir/$1.origin" ]; }

missing() {
	for program in $programs; do
		have "$program" || printf '%s ' "$program"
	done
}

keep() { # file program origin
	chmod 755 "$1"
	mv -f "$1" "$dir/$2"
	printf '%s\n' "$3" >"$tmp/$2.origin"
	mv -f "$tmp/$2.origin" "$dir/$2.origin"
}

[ -n "$(missing)" ] || exit 0

mkdir -p "$dir" || die "cannot create $dir; set LAMBDAMESH_CACHE to a folder that can be written"

# --- one at a time ----------------------------------------------------------
lock=$dir/.lock
tmp=$dir/.tmp.$$
child=
cleanup() {
	[ -z "$child" ] || kill "$child" 2>/dev/null || true
	rm -rf "$tmp"
	[ "$(cat "$lock/pid" 2>/dev/null)" != $$ ] || rm -rf "$lock"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

waited=0
until mkdir "$lock" 2>/dev/null; do
	holder=$(cat "$lock/pid" 2>/dev/null || true)
	if [ -n "$holder" ] && ! kill -0 "$holder" 2>/dev/null; then
		# Its owner died. Were two of us to take it over at once, both would
		# build, and the renames make even that harmless.
		rm -rf "$lock"
		continue
	fi
	[ $((waited % 15)) -ne 0 ] || say "process ${holder:-?} is at it already; waiting (remove $lock if that is not so)"
	sleep 1
	waited=$((waited + 1))
done
echo $$ >"$lock/pid"
[ -n "$(missing)" ] || exit 0
rm -rf "$dir"/.tmp.*
mkdir -p "$tmp"

started=$(date +%s)
elapsed() {
	t=$(($(date +%s) - started))
	printf '%dm%02ds' $((t / 60)) $((t % 60))
}

# watch PID SECONDS STATUS: waits for a child, calls STATUS every five seconds,
# ends the child after SECONDS (0: no limit). Returns the child's exit code.
watch() {
	child=$1
	ticks=0
	while kill -0 "$child" 2>/dev/null; do
		sleep 1
		ticks=$((ticks + 1))
		if [ "$2" -gt 0 ] && [ "$ticks" -ge "$2" ]; then
			kill "$child" 2>/dev/null || true
		elif [ $((ticks % 5)) -eq 0 ]; then
			$3
		fi
	done
	code=0
	wait "$child" || code=$?
	child=
	return "$code"
}

# --- prebuilt ---------------------------------------------------------------
sha256() {
	if command -v sha256sum >/dev/null 2>&1; then
		sha256sum "$1" | cut -d' ' -f1
	else
		shasum -a 256 "$1" | cut -d' ' -f1
	fi
}

# The controller manager and what makes a node are in no bundle of
# setup-envtest, but among the released binaries of Linux.
release_host=${LAMBDAMESH_KUBERNETES_RELEASES:-https://dl.k8s.io}

fetch_release() { # program
	command -v curl >/dev/null 2>&1 || return 1
	url=$release_host/$version/bin/$os/$arch/$1
	want=$(curl -fsSL --connect-timeout 5 --max-time 15 "$url.sha256" 2>/dev/null) || return 1
	curl -fsSL --connect-timeout 5 --max-time 240 -o "$tmp/$1" "$url" 2>/dev/null || return 1
	[ "$(sha256 "$tmp/$1")" = "$(printf '%s' "$want" | cut -d' ' -f1)" ] || {
		say "the download of $1 does not match its checksum; it is thrown away"
		return 1
	}
	keep "$tmp/$1" "$1" "downloaded from $url"
}

envtest_status() { say "$(elapsed)  looking for prebuilt binaries"; }

fetch_envtest() {
	minor=$(printf '%s' "${version#v}" | cut -d. -f1,2)
	"$here/../tools/run" setup-envtest use "$minor.x" --os "$os" --arch "$arch" \
		--bin-dir "$tmp/envtest" --print path >"$tmp/envtest.path" 2>"$tmp/envtest.log" &
	watch $! 120 envtest_status || return 1
	found=$(cat "$tmp/envtest.path")
	[ -d "$found" ] || return 1
	for program in etcd kube-apiserver kubectl; do
		if ! have "$program" && [ -f "$found/$program" ]; then
			keep "$found/$program" "$program" "downloaded by setup-envtest ($(basename "$found"))"
		fi
	done
}

say "need $(missing)in $dir"
if [ "${LAMBDAMESH_PREBUILT:-1}" != 0 ]; then
	if ! { have etcd && have kube-apiserver && have kubectl; }; then
		fetch_envtest || say "no prebuilt binaries within reach; building from source instead"
	fi
	if [ "$os" = linux ]; then
		for program in $(missing); do
			[ "$program" != etcd ] || continue # not one of Kubernetes' releases
			fetch_release "$program" || break  # one that is out of reach means all are
		done
	fi
	if [ -z "$(missing)" ]; then
		say "ready after $(elapsed)"
		exit 0
	fi
fi

# --- from source ------------------------------------------------------------
targets=
for program in $(missing); do
	targets="$targets ./$program"
done
say "building $(missing)from the Go module proxy"
say "the first build takes 5 to 7 minutes on 2 cores and is kept for every later checkout"

export GOWORK=off GOOS="$os" GOARCH="$arch" CGO_ENABLED=0 GOFLAGS=-buildvcs=false

list_status() { say "$(elapsed)  downloading modules"; }
# shellcheck disable=SC2086 # a list of words
go list -deps $targets >"$tmp/packages" 2>"$tmp/list.log" &
watch $! 0 list_status || {
	tail -n 5 "$tmp/list.log" >&2
	die "cannot download the modules; check the network and GOPROXY (now $(go env GOPROXY))"
}
total=$(wc -l <"$tmp/packages" | tr -d ' ')

build_status() {
	n=$(wc -l <"$tmp/build.log" | tr -d ' ')
	if [ "$n" -eq 0 ]; then # all of them compiled by an earlier build
		say "$(elapsed)  linking"
	else
		say "$(elapsed)  compiled $n of at most $total packages, now $(tail -n 1 "$tmp/build.log")"
	fi
}
mkdir -p "$tmp/out"
flags="-s -w"
# Without a version `kubectl version` and the version checks of clients fail.
for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
	flags="$flags -X $package.gitVersion=$version -X $package.gitTreeState=clean"
	flags="$flags -X $package.gitMajor=$(printf '%s' "${version#v}" | cut -d. -f1)"
	flags="$flags -X $package.gitMinor=$(printf '%s' "$version" | cut -d. -f2)"
done
# One go command for all of them: they share most packages, and it uses every core.
# shellcheck disable=SC2086
go build -v -ldflags "$flags" -o "$tmp/out/" $targets 2>"$tmp/build.log" &
watch $! 0 build_status || {
	grep -v '^[a-z0-9.-]*\(/[^ :]*\)*$' "$tmp/build.log" | tail -n 20 >&2 || true
	die "the build failed after $(elapsed)"
}
for program in $(missing); do
	keep "$tmp/out/$program" "$program" "built from source ($version, $(go env GOVERSION))"
done
say "ready after $(elapsed)"
