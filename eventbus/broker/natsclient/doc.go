// Package natsclient says how the event bus proves who it is to NATS, and how it
// knows that it is NATS: files with a user, a password, credentials, certificates,
// which are read again at each connection, so that what is renewed is used.
//
// What may enter: options of nats.go that the clients of all brokers share.
package natsclient
