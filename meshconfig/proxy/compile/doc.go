// Package compile turns xDS resources into what serves requests: listeners with
// their filter chains and connection managers, route tables, clusters,
// endpoints and secrets. Each is compiled on its own and never changes
// afterwards; Resources keeps what was accepted and compiles only what differs.
//
// What may enter: judging a resource. Whatever is not implemented wholly is an
// error that names resource and field, which the control plane is told (NACK).
// Nothing here opens a socket.
package compile
