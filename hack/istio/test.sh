#!/bin/sh
# The tests behind `make test-istio`: every package with a test that a real
# istiod stands behind (LAMBDAMESH_ISTIOD), and of those packages these tests
# only. LAMBDAMESH_ISTIOD may name a pilot-discovery of your own.
#
# Usage: hack/istio/test.sh [go test flags...]
set -eu

KUBEBUILDER_ASSETS=$(hack/kubernetes/get.sh --dir)
LAMBDAMESH_ISTIOD=${LAMBDAMESH_ISTIOD:-$(hack/istio/get.sh)}
export KUBEBUILDER_ASSETS LAMBDAMESH_ISTIOD

# They have Istiod in their names, so that none is missed; and each says so
# when it is skipped.
files=$(grep -rlE --include='*_test.go' '^func Test[A-Za-z0-9]*Istiod' .)
packages=$(printf '%s\n' "$files" | xargs -n 1 dirname | sort -u)
unnamed=$(grep -rlE --include='*_test.go' 'RequireIstiod\(|Istiod\(t,' . | while read -r file; do
	printf '%s\n' "$files" | grep -qxF "$file" || grep -q '^func Benchmark' "$file" || echo "$file"
done)
if [ -n "$unnamed" ]; then
	printf 'test-istio: these use istiod in tests without Istiod in their names:\n%s\n' "$unnamed" >&2
	exit 1
fi

# shellcheck disable=SC2086 # a list of packages
CGO_ENABLED=0 go test -count=1 -timeout 20m -run Istiod "$@" $packages
command -v envoy >/dev/null 2>&1 || cat <<END
left out:
  - an Envoy: gateways and sidecars are the embedded proxy, and what only an Envoy does with istiod's configuration is not shown
END
