// Package localnode runs Deployments of lambdas as processes on this machine:
// it plays kubelet and deployment controller for those that carry our label.
//
//	Deployment ── workload ── replica (identity, sockets, sidecar)
//	    ^            │            └── process, restarted when it crashes
//	    └── status ──┘
//
// A workload keeps as many ready replicas of the newest pod template as the
// Deployment asks for, and takes those of an older template out only when their
// successors are announced. A replica lives through these steps, and through
// them in reverse when it goes:
//
//	listeners bound -> Sidecar and WorkloadEntry objects -> sidecar started ->
//	process started -> process ready -> sidecar ready -> endpoint announced
//
// The WorkloadEntry exists from the start, because it is the identity by which
// the control plane knows the sidecar; it becomes an endpoint when it gets the
// labels that the Service selects. When a replica goes, the labels go first,
// then requests drain, then the process is told to stop.
//
// Where the Deployment's lambda may go to zero (scale.min: 0), a gate of
// lambdas/activator has the socket that the sidecar leads to, and the process one
// of its own: identity, sidecar and endpoint stay while the process is stopped,
// and a request that the sidecar lets through starts it again.
//
// How many replicas there are, the requests in flight tell (scaler.go), between
// the bounds that the Deployment's annotation carries; the number is written to
// its spec.replicas.
//
// The process gets the environment of the pod template, with sockets in place
// of ports and the sidecar's egress listener as HTTP proxy; of this process's
// own environment it gets PATH and LANG. Resources are not enforced here, and
// volumes other than /tmp are not mounted.
//
// What may enter: what a node does. The sidecar is an interface handed in; how
// source becomes an artifact is lambdas/build.
package localnode
