// Package eventbus puts the Event Bus together: events come in over HTTP, are
// stored before they are accepted, and are pushed to the sinks of Subscriptions
// until each was delivered or lies in the dead-letter store.
//
//	HTTP -> ingress -> broker/jetstream -> dispatch -> HTTP
//	                       ^                  ^ sinkauth
//	                   natsserver         controller <- Subscription, ApplicationBinding, EventGrant
//	                   (embedded)
//
// NATS Streaming (package broker/stan) can take the place of JetStream; package
// migrate leads back. Operators look in through package admin.
//
// What may enter: wiring. `cmd/eventbus` and `lambdamesh dev` both build the bus
// with [New], from other listeners and with another NATS.
package eventbus
