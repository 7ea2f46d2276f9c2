// Package build turns a Lambda's source into what a Deployment can run.
//
//	source.Tree ──Toolchain──> Product ──Store──> Artifact ──> lambdas/deploy
//	                           (a directory)      (an image, files to mount)
//
// [Toolchain] builds a tree into a product, a directory that never changes,
// kept by content. It decides everything about a source, in a cluster and in
// `lambdamesh dev` alike; what runs is the same. A [Store] hands a product to
// those who run it: [Directory] to the local node, [Mounts] as files of a
// ConfigMap to pods. [Pipeline] does it all for a Lambda, and [Queue] does so in
// the background, few at a time.
//
// What may enter: everything between files and an image reference, with errors
// that speak of the user's own lines. Nothing here talks to Kubernetes.
package build
