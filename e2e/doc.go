// Package e2e drives the built programs from outside, as users do: HTTP, kubectl
// and client-go against `lambdamesh dev`. `make e2e` builds them and runs it.
//
// What may enter: scenarios in terms of api.md's contract. Nothing here imports
// a domain; the names of kinds and fields are those of YAML files.
package e2e
