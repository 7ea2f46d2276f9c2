// Package deploy says which Kubernetes objects run a Lambda: its Deployment,
// Service, ServiceAccount, NetworkPolicy and, when the source is mounted, a
// ConfigMap.
//
// It is pure: the same lambda and artifact give the same objects. The objects
// are the same in a cluster and in `lambdamesh dev`; there the local node sets
// what a cluster's node sets, such as sockets instead of ports.
//
// What may enter: a mapping from a Lambda's field to an object's. Applying is
// lambdas/controller.
package deploy
