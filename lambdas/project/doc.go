// Package project is a lambda as a directory: files as an editor and a language's
// own tools want them, and beside them lambda.yaml, the Lambda without a source.
//
//	Init ──> directory ──Read──> Lambda with the files as source.inline
//	             └──Watcher──> read again
//
// `lambdamesh lambda run`, `lambda deploy` and `dev --apply` read one with this
// code alone, so that what was tried is what is deployed.
//
// What may enter: what is in such a directory, and how a new one looks. What the
// files mean to a language is lambdas/build.
package project
