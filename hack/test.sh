#!/bin/sh
# The tests behind `make test`: every package of the main module but e2e, then
# every nested module. Says at the end what it left out and why.
#
# Usage: hack/test.sh PACKAGES NESTED-MODULES [go test flags...]
set -eu

packages=$1
nested=$2
shift 2

KUBEBUILDER_ASSETS=$(hack/kubernetes/get.sh --dir)
export KUBEBUILDER_ASSETS

left_out=
leave_out() {
	left_out="$left_out
  - $1"
}

# The race detector is the only thing here that wants a C compiler.
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cc=$(go env CC)
printf '#include <stdlib.h>\nint main(void) { return 0; }\n' >"$scratch/main.c"
# shellcheck disable=SC2086 # a command with flags
if $cc -o "$scratch/main" "$scratch/main.c" >/dev/null 2>&1; then
	export CGO_ENABLED=1
	set -- -race "$@"
else
	export CGO_ENABLED=0
	leave_out "-race: it needs a C compiler, and '$cc' is none that works"
fi
[ -n "${LAMBDAMESH_ISTIOD:-}" ] || leave_out "what runs a real istiod: make test-istio"
command -v node >/dev/null 2>&1 || leave_out "what runs lambdas in Node.js: no node on PATH"
command -v python3 >/dev/null 2>&1 || leave_out "what runs lambdas in Python: no python3 on PATH"

failed=
if [ -n "$packages" ]; then
	# shellcheck disable=SC2086 # a list of patterns
	go test -timeout 15m "$@" $packages || failed=1
else
	leave_out "e2e: make e2e"
	# shellcheck disable=SC2046
	go test -timeout 15m "$@" $(go list ./... | grep -v "^$(go list -m)/e2e") || failed=1
	for module in $nested; do
		echo "--- module $module"
		(cd "$module" && GOWORK=off go test -timeout 15m "$@" ./...) || failed=1
	done
fi

[ -z "$left_out" ] || printf 'left out:%s\n' "$left_out"
[ -z "$failed" ]
