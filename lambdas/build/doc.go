// Package build turns a Lambda's source into what a Deployment can run.
//
// [Toolchain] uses the languages installed on this machine and keeps artifacts
// by content under a directory; it is what `lambdamesh dev` runs. [Images]
// is for clusters: interpreted languages run from an image that has the
// language, with the source and the runtime server mounted.
//
// What may enter: everything between source text and an image reference, with
// errors that speak of the user's own lines. Nothing here talks to Kubernetes.
package build
