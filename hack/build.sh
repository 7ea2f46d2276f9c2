#!/bin/sh
# The build behind `make build`: the programs of cmd/ into bin/, with a line
# every few seconds while it compiles (minutes the first time on a machine).
#
# Usage: hack/build.sh LDFLAGS
set -eu

log=$(mktemp)
reporter=
cleanup() {
	[ -z "$reporter" ] || kill "$reporter" 2>/dev/null || true
	rm -f "$log"
}
trap cleanup EXIT
trap 'exit 130' INT

# It reports from the background, so that a build with nothing to do waits for
# nothing.
(
	seconds=0
	while sleep 5; do
		seconds=$((seconds + 5))
		printf 'build: %4d packages compiled, %4d modules downloaded, %ds; the first time takes some minutes\n' \
			"$(grep -c '^[^ ]*$' "$log")" "$(grep -c '^go: downloading' "$log")" "$seconds" >&2
	done
) &
reporter=$!

if ! CGO_ENABLED=0 go build -v -buildvcs=false -ldflags "$1" -o bin/ ./cmd/... 2>"$log"; then
	# What is no package's name and no download is what went wrong.
	grep -v -e '^[^ #]*$' -e '^go: downloading' "$log" >&2 || true
	exit 1
fi
# kubectl finds its plugins by their names: `kubectl lambdamesh`.
ln -sf lambdamesh bin/kubectl-lambdamesh
