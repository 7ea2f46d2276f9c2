// Package istio applies a mesh as Istio's objects (package meshconfig/istio),
// repairs what others change of them, and deletes those that nothing stands
// behind any more.
//
// What may enter: reading and writing those objects. What is in them is decided
// by meshconfig/istio.
package istio
