// Package headers names the HTTP headers by which the mesh tells a workload who
// calls and what let them in: a contract between the gateway, the sidecars, the
// runtimes, the event bus and the connector. The names stand here and nowhere
// else in Go code, so that whoever sets one, reads one or removes a client's
// copies means the same list.
package headers
