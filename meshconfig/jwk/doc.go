// Package jwk says which keys of a JWK Set (RFC 7517) the mesh uses, for whoever
// fetches a set and whoever reads one from a Secret.
//
// What may enter: judging keys; standard library only.
package jwk
