// Package standalone runs one lambda without a mesh, for its developer: it builds
// the project, starts the process, and does both again when a file is saved.
//
//	client ──> Gate ──> newest process that is ready
//	            project.Watcher ──> build ──> process ──> in place of the one before
//
// What a mesh would say of a request it says in its place: one that has the
// attributes of a CloudEvent is an event as if the event bus had made it, any
// other one is a request as if the gateway had let it in. It listens on loopback
// and keeps web pages out. Published events are printed.
//
// What may enter: what stands in for the mesh when there is none.
package standalone
