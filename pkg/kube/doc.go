// Package kube is how every controller talks to a Kubernetes API server: one
// scheme, one way to find the server, one way to apply an object.
//
// What may enter: what an unrelated controller would copy unchanged. What an
// object means belongs to its domain.
package kube
