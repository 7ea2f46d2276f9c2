// Package status writes what is wanted of the statuses of APIRules, Gateways and
// Sidecars: a few at a time, one at a time for each object, the newest wish only,
// and nothing that is there already.
//
// What may enter: writing statuses. What they say is decided by translate and by
// the outputs.
package status
