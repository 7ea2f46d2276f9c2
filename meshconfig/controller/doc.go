// Package controller is the loop of the mesh: it takes a snapshot of the objects
// that describe the mesh (package watch), runs the pure stages on it, hands the
// result to the outputs (package output), and has the statuses written (package
// status) that tell what came of it.
//
//	watch --dirty--> snapshot -> translate -> Output.Update   (all of it, every time)
//	                                             |
//	Output --changed--> Programmed of every rule --'--> status
//
// One loop does this. A change marks the snapshot dirty; the first one is taken
// up at once, those that follow at most every 20 ms (of a large mesh, less often, so
// that rebuilding takes at most half of the time). The whole mesh is computed
// again each time, because that takes milliseconds and can forget nothing; what
// is pushed, applied and written is only what differs from before.
//
// What it promises: nothing is handed to an output before all informers have
// synced and every key set was tried once; every replica feeds its outputs, and
// only the leader writes to the API server, knowing of the data planes of all; a
// condition Programmed=True stays while newer resources of the same generation
// are under way.
//
// What may enter: when something is done, and in which order. What an object
// means belongs to translate.
package controller
