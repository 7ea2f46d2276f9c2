// Package lambdas is the room of lambdas: how they are built, deployed and run.
//
//	Lambda ── source ──> files ── build ──> Artifact ── deploy ──> Deployment, Service, ...
//	   ^                                                                │
//	   └──── controller: applies them, reports <──────────── status ────┤
//	                                                                    │
//	                   a cluster's kubelet, or localnode <──────────────┘ runs lambdas/runtimes
//
// source turns inline code and whatever else into one tree of files, build turns
// the tree into what runs, in a bounded queue and outside of reconciles, deploy
// is pure, controller is the reconciler, localnode runs Deployments as
// processes on this machine, place says who a process that is no pod is in the
// mesh, activator holds requests while a process is started, runtimes holds the
// in-pod servers. For who writes a lambda, project is its directory and standalone
// runs it without a mesh. It imports no other domain: what the mesh does for a
// replica enters localnode as the interface Sidecars.
package lambdas
