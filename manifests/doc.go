// Package manifests holds what is installed into a cluster, as files that
// kubectl and kustomize take, and embeds the CustomResourceDefinitions for the
// programs that install them by themselves (`lambdamesh dev`, the tests).
//
//	crds/      our kinds, generated from pkg/apis by `make generate`
//	istio/     Istio's kinds, copied from Istio (Apache-2.0, see the file's head)
//	charts/    the installation, as a Helm chart
//	overlays/  the chart rendered for kustomize (istio: on a cluster with Istio;
//	           envoy: with data planes that we program), by `make generate`
//
// Only manifests may enter here, and the tests that render them and show them
// to a real kube-apiserver. Code that installs them belongs to its caller.
package manifests
