// Package output is what the loop hands a mesh to, and what it learns from it: a
// folder for each output beside it.
//
//	controller --Update(mesh)--> Output: envoy (ADS) | istio (objects in the API server)
//	           <--Programmed----
//
// What may enter: what every output has to answer.
package output
