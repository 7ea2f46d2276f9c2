// Package controller is where the mesh meets Kubernetes: it watches the objects
// that describe the mesh, runs the pure stages on one [translate.Snapshot] of
// them, hands the result to its outputs, and tells in every APIRule's status
// what came of it, and in the statuses of Gateways and Sidecars what is wrong with
// them. Nothing else in meshconfig talks to an API server.
//
//	informers --dirty--> snapshot -> translate -> Output.Update   (all of it, every time)
//	jwks      --dirty--'                              |
//	Output    --changed--> Programmed of every rule --'--> status writer
//
// One loop does this. A change marks the snapshot dirty; the first one is taken
// up at once, those that follow at most every 20 ms (of a large mesh, less often, so
// that rebuilding takes at most half of the time). The whole mesh is computed
// again each time, because that takes milliseconds and can forget nothing; what
// is pushed, applied and written is only what differs from before.
//
// What it promises: nothing is handed to an output before all informers have
// synced and every key set was tried once; every replica feeds its outputs, and
// only the leader writes to the API server, knowing of the data planes of all
// ([PeersConfig]); a condition Programmed=True stays
// while newer resources of the same generation are under way.
//
// Secrets: only their metadata is watched and kept, without annotations (kubectl
// may have written the data there). Those that a rule or a Gateway names are
// read one by one when their resource version changes.
//
// What may enter: watching, the loop, outputs that write somewhere, statuses.
// What an object means belongs to translate.
package controller
