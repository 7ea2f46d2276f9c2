// Package lambdas is the room of lambdas: how they are built, deployed and run.
//
//	Lambda ── build ──> Artifact ── deploy ──> Deployment, Service, ServiceAccount
//	   ^                                            │
//	   └── controller: applies them, reports <── status
//	                                                │
//	            a cluster's kubelet, or localnode ──┘ runs lambdas/runtimes
//
// runtimes holds the in-pod servers, build turns source into what runs, deploy
// is pure, controller is the reconciler, localnode runs Deployments as
// processes on this machine. It imports no other domain: what the mesh does for
// a replica enters localnode as the interface Sidecars.
package lambdas
