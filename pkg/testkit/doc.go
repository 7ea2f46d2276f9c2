// Package testkit holds what the tests of several rooms share: a real API
// server, namespaces in it, waiting with a deadline, golden files, and
// directories short enough for Unix sockets.
//
// What may enter: helpers of two rooms' tests that know nothing of lambdas,
// routes or events. Only tests import it.
package testkit
