// Package cluster installs Lambdamesh on a real Kubernetes and drives it from
// outside and from pods. `make e2e-cluster` starts a cluster for it, pushes the
// images and runs it; with KUBECONFIG and REGISTRY set it takes that cluster,
// which must have no lambdamesh-system. Without a cluster it says that it was
// left out; LAMBDAMESH_CLUSTER_REQUIRED=1 makes that a failure.
//
// TestCluster is the life of one installation, in order: install, the commerce
// demo, hostile requests from outside and from pods, publishing from outside,
// pods that fail, a node that is killed, removal, and a second installation. The
// documented commands install and remove it, and nothing else. What pods have to
// do a program in testdata/probe does for the tests.
//
// TestIstio is the life of one with mesh=istio, on a cluster that Istio is in
// (hack/istio): `make e2e-cluster MESH=istio`.
//
// TestWalk goes through docs/install.md in a fresh clone, by the commands that stand
// there.
//
// What may enter: scenarios that need pods or nodes. What the local mesh shows
// as well belongs to the package e2e.
package cluster
