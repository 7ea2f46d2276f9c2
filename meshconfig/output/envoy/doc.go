// Package envoy serves a mesh over ADS: the resources of package xds for each
// gateway and sidecar, sent when they differ, and for each rule how far the data
// planes of all replicas are with it.
//
// What may enter: sets of resources by node, who may be a node, acknowledgments.
package envoy
