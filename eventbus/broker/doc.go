// Package broker says what the bus asks of the store that keeps its events:
// durable consumers and their deliveries, dead letters, how events are addressed
// and selected, and the errors that tell why something was not stored.
//
//	jetstream    the backend
//	stan         NATS Streaming, frozen
//	conformance  the suite that both pass
//	natsclient   how both prove who they are to NATS
//
// What may enter: the vocabulary that ingress, dispatch, admin and every backend
// share, and pure functions of it. No I/O.
package broker
