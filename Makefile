# `make` lists what there is to do. Everything needs Go, make and git; nothing is
# installed system-wide. What is expensive to build (Kubernetes' binaries, the
# tools) is kept by version in the cache that hack/kubernetes/get.sh names.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.SUFFIXES:

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -X main.version=$(VERSION)
TOOL := hack/tools/run

# Modules of their own inside the checkout that have tests (the runtimes' SDKs).
NESTED = $(shell find . -name go.mod -not -path './go.mod' -not -path './hack/*' \
	-not -path '*/testdata/*' -not -path '*/node_modules/*' -not -path './.lambdamesh/*' -exec dirname {} \;)
MODULES = . $(NESTED) hack/kubernetes hack/istio hack/cluster hack/cluster/containerd hack/cluster/coredns hack/images hack/tools hack/tools/helm hack/tools/lint

# Tests and benchmarks of the whole module, or `make test PKG=./eventbus/...`.
PKG ?=
# Further flags for go test: make test ARGS='-run TestPublish -v'.
ARGS ?=

.PHONY: help
help: ## List the targets
	@echo 'Lambdamesh $(VERSION)'
	@awk -F ':.*## ' '/^##@ / {printf "\n%s\n", substr($$0, 5)} \
		/^[a-z0-9-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: check-go
check-go:
	@command -v go >/dev/null 2>&1 || { \
		echo 'Lambdamesh is built with Go 1.26 or newer and found none: install it from https://go.dev/dl' >&2; exit 1; }
	@go list -m >/dev/null 2>&1 || { go list -m || true; \
		echo "Lambdamesh is built with Go 1.26 or newer; found $$(cd / && go env GOVERSION) at $$(command -v go)." >&2; \
		echo 'Update it (https://go.dev/dl), or let Go fetch the right one: GOTOOLCHAIN=auto make ...' >&2; exit 1; }

##@ Run and build

.PHONY: run
run: build ## Build what is missing and run everything here, with the demo of examples/commerce
	@# The target is examples/webshop, which who tries it runs beside.
	@exec bin/lambdamesh dev --apply examples/commerce --allow-target 127.0.0.1:8084 $(ARGS)

.PHONY: build
build: kubernetes ## Build the programs of cmd/ into bin/
	@mkdir -p bin
	@hack/build.sh '$(LDFLAGS)'

.PHONY: kubernetes
kubernetes: check-go ## Get kube-apiserver, etcd, kube-controller-manager and kubectl (bin/kubectl)
	@hack/kubernetes/get.sh
	@mkdir -p bin && ln -sf "$$(hack/kubernetes/get.sh --dir)/kubectl" bin/kubectl

# Clusters have names, so that several run side by side: make cluster NAME=b NODES=3
NAME ?= mesh
NODES ?= 2

.PHONY: cluster
cluster: check-go ## Start real Kubernetes nodes on this machine (Linux, root; hack/cluster); NODES=2 NAME=mesh
	@hack/cluster/run up --name '$(NAME)' --nodes '$(NODES)'

.PHONY: cluster-down
cluster-down: check-go ## End that cluster and undo what it changed, also after an interrupted start
	@hack/cluster/run down --name '$(NAME)'

# Of which platforms and which images: make push PLATFORMS=linux/amd64 IMAGES=controlplane,proxy REGISTRY=...
PLATFORMS ?=
IMAGES ?=
IMAGE_FLAGS = --version '$(VERSION)' --platforms '$(PLATFORMS)' --images '$(IMAGES)' $(ARGS)

.PHONY: images
images: check-go ## Build container images into dist/images (OCI layout) and dist/images.tar; PLATFORMS=, IMAGES=
	@hack/images/run build $(IMAGE_FLAGS)

.PHONY: push
push: check-go ## Build them for amd64 and arm64 and push them: make push REGISTRY=registry.example.com/lambdamesh
	@hack/images/run push $(IMAGE_FLAGS) '$(REGISTRY)'

.PHONY: images-lock
images-lock: check-go ## Take the versions of Debian's packages of today into the runtimes' images
	@hack/images/run lock

##@ Test

.PHONY: test
test: kubernetes ## Run the unit and integration tests (with -race where a C compiler is); no e2e
	@hack/test.sh '$(PKG)' '$(NESTED)' $(ARGS)

.PHONY: e2e
e2e: build ## Drive the built programs from outside
	@KUBEBUILDER_ASSETS="$$(hack/kubernetes/get.sh --dir)" LAMBDAMESH_BIN='$(CURDIR)/bin' CGO_ENABLED=0 \
		go test -count=1 -timeout 20m $(ARGS) ./e2e/...

.PHONY: test-images
test-images: check-go ## Test the container images in a registry of their own
	@hack/images/test.sh $(ARGS)

.PHONY: test-istio
test-istio: kubernetes ## Test with a real istiod, built once (4 to 8 minutes) from the Go module proxy
	@hack/istio/test.sh $(ARGS)

.PHONY: e2e-cluster
e2e-cluster: build ## Install on a real cluster and drive it: one of its own, or KUBECONFIG= with REGISTRY=; MESH=istio
	@hack/e2e-cluster.sh $(ARGS)

.PHONY: test-cluster
test-cluster: check-go ## Test hack/cluster with real clusters (root; says when it is left out)
	@hack/cluster/test.sh $(ARGS)

# How long each target is fuzzed: make fuzz FUZZTIME=10m.
FUZZTIME ?= 1m

.PHONY: fuzz
fuzz: check-go ## Fuzz each target for FUZZTIME; what fails is kept in its testdata/fuzz, to be committed
	@grep -rEo --include='*_test.go' '^func Fuzz[A-Za-z0-9_]+' $(or $(patsubst ./%/...,%,$(PKG)),.) | sed 's|:func | |' | sort | while read -r file target; do \
		echo "--- $$target in $${file%/*}"; \
		CGO_ENABLED=0 go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) $(ARGS) "./$${file%/*}" || exit 1; done

.PHONY: bench
bench: build ## Run the benchmarks into dist/bench.txt; BASE=old.txt compares with an earlier run
	@mkdir -p dist
	@KUBEBUILDER_ASSETS="$$(hack/kubernetes/get.sh --dir)" LAMBDAMESH_BIN='$(CURDIR)/bin' CGO_ENABLED=0 \
		go test -run '^$$' -bench . -benchmem -timeout 30m $(ARGS) $(or $(PKG),./...) >dist/bench.out 2>&1 \
		|| { cat dist/bench.out; exit 1; }
	@grep -v 'no test files' dist/bench.out >dist/bench.txt && rm dist/bench.out
	@$(TOOL) benchstat $(BASE) dist/bench.txt

##@ Generate and verify

.PHONY: generate
generate: check-go ## Write deepcopy functions, CRDs and their field docs from pkg/apis; the overlays from the chart
	@$(TOOL) controller-gen object paths=./pkg/apis/...
	@$(TOOL) controller-gen crd paths=./pkg/apis/... output:crd:dir=manifests/crds
	@{ printf '%s\n' '# Rewritten by `make generate`.' 'apiVersion: kustomize.config.k8s.io/v1beta1' 'kind: Kustomization' 'resources:'; \
		for file in manifests/crds/lambdamesh.dev_*.yaml; do echo "  - $${file##*/}"; done; } >manifests/crds/kustomization.yaml
	@hack/overlays.sh

.PHONY: release
release: check-go ## Write VERSION=v1.2.3 into the chart and the overlays, in the commit that will be tagged so
	@case '$(VERSION)' in v[0-9]*.[0-9]*.[0-9]*) ;; *) echo 'release: pass VERSION=v1.2.3' >&2; exit 2 ;; esac
	@sed -i.orig -e "s/^version: .*/version: $(VERSION:v%=%)/" -e "s/^appVersion: .*/appVersion: $(VERSION)/" manifests/charts/lambdamesh/Chart.yaml
	@rm manifests/charts/lambdamesh/Chart.yaml.orig
	@hack/overlays.sh

.PHONY: golden
golden: check-go ## Rewrite the golden files; read the diff before you commit it
	@# The translation first: its output is the input of the others.
	@UPDATE_GOLDEN=1 CGO_ENABLED=0 go test -count=1 -run Golden ./meshconfig/translate
	@UPDATE_GOLDEN=1 CGO_ENABLED=0 go test -p 1 -count=1 $$(grep -rl --include='*_test.go' 'testkit\.Golden(' meshconfig lambdas eventbus connector \
		| xargs -n 1 dirname | sort -u | sed 's|^|./|')
	@git --no-pager diff --stat

.PHONY: lint
lint: check-go ## Lint, the import arrows of the architecture included
	@CGO_ENABLED=0 $(TOOL) golangci-lint run $(PKG)
	@[ -n '$(PKG)' ] || for module in hack/cluster hack/images; do \
		(cd $$module && GOWORK=off CGO_ENABLED=0 ../../$(TOOL) golangci-lint run) || exit 1; done
	@bad=$$(for file in $$(grep -rl --include='*_test.go' 'time\.Sleep(' $(or $(patsubst %/...,%,$(PKG)),.)); do \
		grep -q '"testing/synctest"' "$$file" || echo "$$file"; done); [ -z "$$bad" ] || { echo "$$bad" >&2; \
		echo 'lint: these tests sleep: wait for an event with a deadline, or use testing/synctest' >&2; exit 1; }

.PHONY: fmt
fmt: check-go ## Format the code
	@CGO_ENABLED=0 $(TOOL) golangci-lint fmt

.PHONY: tidy
tidy: check-go ## Tidy every module
	@for module in $(MODULES); do (cd "$$module" && go mod tidy) || exit 1; done

.PHONY: verify
verify: generate ## Generate, check the modules and lint; fails when anything is not committed
	@for module in $(MODULES); do echo "tidy $$module"; (cd "$$module" && go mod tidy -diff) || exit 1; done
	@missing=$$(sed -n 's/^\t\([^ ]*\) v[^ ]*$$/\1/p' go.mod | while read -r module; do \
		grep -q "\`$$module" docs/dependencies.md || echo "$$module"; done); [ -z "$$missing" ] || { \
		printf 'verify: docs/dependencies.md says nothing about:\n%s\n' "$$missing" >&2; exit 1; }
	@$(MAKE) --no-print-directory lint
	@changes=$$(git status --porcelain) && [ -z "$$changes" ] || { git --no-pager diff --stat; echo "$$changes"; \
		echo 'verify: these files are not committed (or make generate has just changed them)' >&2; exit 1; }

.PHONY: clean
clean: ## Remove what builds left in this checkout; the caches stay
	rm -rf bin dist
