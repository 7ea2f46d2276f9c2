// Package admin serves the bus's administrative port.
//
//	GET /healthz, /readyz, /metrics
//
// and, below /admin/v1 for everything and below /admin/v1/namespaces/NAMESPACE for
// what that namespace may read and its Subscriptions got:
//
//	GET  /events?source=&type=&since=&sequence=&limit=&data=&follow=
//	GET  /explain?id=&source=
//	GET  /dead-letters?subscription=NAMESPACE/NAME&after=ID&limit=N
//	GET  /dead-letters/ID
//	POST /dead-letters/ID/redrive
//	DELETE /dead-letters/ID
//	POST /namespaces/NAMESPACE/subscriptions/NAME/replay
//
// Every replica answers: what it tells is in the broker and in the API server, and
// not in the process that dispatches.
//
// What may enter: looking into the bus and repairing it, for operators and for who
// owns a namespace.
package admin
