// Package controller reconciles Lambdas: build the source, apply the objects
// that run it, report what runs.
//
//	fetch -> build -> check -> protect -> apply -> observe the Deployment -> status
//
// What was deployed keeps running as long as new source does not build. It
// knows nothing of where it runs: the builder is handed in, and replica counts
// come from the Deployment's status, which a cluster or the local node writes.
// Why replicas are not ready, pods tell in a cluster (pods.go), and the
// Deployment's conditions locally.
//
// Beside it runs a controller of NetworkPolicies, which lets to a lambda's pods
// what APIRules, Subscriptions and its access list name (policy.go).
//
// What may enter: steps of that reconciliation.
package controller
