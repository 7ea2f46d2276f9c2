// Package strict reads xDS messages field by field: what is set and not
// understood is an error, so that nothing that an Envoy would do is overlooked.
//
// What may enter: reading what several kinds of resources have in common, and
// the list of extensions that change no answer (inert.go).
package strict
