// Package watch reads all that a translation depends on and tells when it
// changes: objects from informers, the Secrets that rules and Gateways name, key
// sets of token issuers, and what Istio's MeshConfig says of paths.
//
// Secrets: only their metadata is watched and kept, without annotations (kubectl
// may have written the data there). Those that are named are read one by one
// when their resource version changes.
//
// What may enter: reading. Nothing here writes to the API server.
package watch
