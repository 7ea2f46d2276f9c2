// Package httpserver is how our processes serve HTTP: one way to listen, to
// bound what a client may do, to drain, to say what went wrong, and to know who
// calls.
//
// What may enter: what every HTTP server of ours needs and an unrelated product
// would copy unchanged. Routes and their handlers live in their domain.
package httpserver
