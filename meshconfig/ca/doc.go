// Package ca issues the certificates with which mesh members know each other.
//
// A [CA] holds one self-signed root (ECDSA P-256, ten years) and signs
// short-lived leaves that carry a SPIFFE identity as their only URI SAN. The
// root is kept in a [Storage], a directory for development or a Kubernetes
// Secret, and is created there once, however many processes start at a time:
//
//	authority, err := ca.Open(ctx, ca.Directory(dir), ca.Config{})
//	leaf, err := authority.Issue("spiffe://cluster.local/ns/shop/sa/last-order")
//	serve(leaf.ChainPEM, leaf.KeyPEM); renewAt := leaf.RenewAt()
//
// Nothing is revoked: a leaf lives for a day and whoever serves it renews it at
// half of its life.
//
// What may enter: keys, certificates and where the root is stored. Who is
// allowed to have which identity is decided by those who call Issue.
package ca
