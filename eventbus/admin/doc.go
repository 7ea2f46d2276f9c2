// Package admin serves the bus's administrative port.
//
//	GET /healthz, /readyz, /metrics
//	GET /admin/v1/dead-letters?subscription=NAMESPACE/NAME&after=ID&limit=N
//
// What may enter: looking into the bus and repairing it, for operators. Replay,
// explain and redrive come here.
package admin
