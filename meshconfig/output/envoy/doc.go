// Package envoy serves a mesh over ADS: the resources of package xds for each
// gateway and sidecar, and for each rule how far the data planes of all replicas
// are with it. A gateway is made in parts (gateway.go): of a part of the mesh that
// is the same as before, by its pointer, nothing is made, checked or sent.
//
// What may enter: sets of resources by node, who may be a node, acknowledgments.
package envoy
