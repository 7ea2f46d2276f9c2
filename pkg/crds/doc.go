// Package crds reads CustomResourceDefinitions from files and installs them
// into an API server, for the programs that bring their own: `lambdamesh dev`
// and the tests. In a cluster the operator applies the manifests instead.
//
// What may enter: reading, installing, waiting. Which definitions there are is
// the caller's to say.
package crds
