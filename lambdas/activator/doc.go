// Package activator stands before a lambda's process that need not run: it holds
// a request until there is a process to answer it.
//
//	sidecar ──> Gate ──> process
//	             │  └── none runs: hold the request, ask for one to be started
//	             └───── nothing in flight for a while: it may be stopped
//
// The gate is behind the sidecar, on the socket that the sidecar alone reaches:
// who calls, by which rule and with which token has been decided when a request
// gets here, and what is refused starts nothing. It speaks HTTP and not only
// connections because a process must not stop between the first and the last
// byte of a request, and kept-alive connections do not tell when that is.
//
// What may enter: passing requests on to a process that comes and goes. How it is
// started is the affair of who owns the gate: lambdas/localnode,
// lambdas/standalone.
package activator
