// Package runtimes holds the in-pod servers of lambdas as embedded files: the
// processes that take an HTTP request, call the user's handler and answer.
//
// One folder per language. All of them keep one contract (README.md), which
// runtimes_test.go runs as one table against every language. They use their
// language's standard library only.
//
// The Go server is the SDK package lambdas/runtimes/go. In this repository it
// is a package of the main module, so that it is compiled and tested with
// everything else; for a lambda's build [GoSDK] gives it out as a module of its
// own, whose go.mod is kept as sdk.mod because embedding does not cross module
// boundaries.
//
// What may enter: runtime servers and the accessors to their files. How they
// are built and started is lambdas/build and lambdas/localnode.
package runtimes
