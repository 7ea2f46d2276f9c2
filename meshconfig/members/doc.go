// Package members gives pods what they need to be members of a mesh without
// Istio:
//
//	ConfigMap lambdamesh-mesh   in each namespace with a Lambda or a pod that asks
//	                            for a sidecar, and in the system's: the mesh's CA,
//	                            the proxy's bootstrap                      (configmap.go)
//	admission webhook           a sidecar for every other pod with the label (webhook.go,
//	                            review.go, inject.go, bounds.go)
//
// Lambdas' pods come with their sidecar from lambdas/deploy, and our own from the
// manifests. What a member may reach and who may reach it is decided by translate;
// here it only gets there.
//
// What may enter: what is put into namespaces and pods for the proxies in them.
package members
