// Package place is where a process that is no pod stands in the mesh: the
// objects that are its identity and its endpoint, and the directory of its
// sockets.
//
//	WorkloadEntry: who it is, and where its inbound listener is
//	Sidecar:       what its proxy serves: inbound mTLS for the process behind a
//	               Unix socket, and the process's own HTTP proxy
//
// The local node's replicas and the members of `lambdamesh dev` have theirs from
// here, so that the control plane sees one kind of neighbor. The objects of
// pods are lambdas/deploy.
//
// What may enter: what such a process needs besides itself, and what a developer's
// own request is taken for. It is pure but for the directory.
package place
