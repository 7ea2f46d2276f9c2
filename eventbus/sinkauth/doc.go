// Package sinkauth makes the requests to a sink outside of the mesh known to it:
// by a signature, an access token, a password, a certificate, or further headers.
//
//	SinkAuth + Secrets of its namespace -> Auth -> headers of each request
//
// An [Auth] is made once for each version of its Secrets ([Resolver]), and never
// changes. No error and no String tells what is in a Secret.
//
// What may enter: what proves to a sink who sends. What is sent, when and how often
// is package dispatch; what may be called is decided by a policy of targets.
package sinkauth
