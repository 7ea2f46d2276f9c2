// Package ir is the mesh as Lambdamesh wants it: which gateways serve which
// hosts, which rule decides about a request, where it goes, and who may reach
// which workload.
//
// It is the only thing the outputs (istio, xds) know. Only plain values, their
// Validate, and meaning that both outputs must share (how a path template is
// matched, what an authorization requires) may enter; the standard library is
// the only import. Every list has a stable order, so equal meshes are equal
// values.
package ir
