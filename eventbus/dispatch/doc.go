// Package dispatch hands events to their sinks over HTTP, each at least once.
//
//	durable consumer -> select and filter -> POST -> 2xx: acknowledge
//	                                             -> else: again after a backoff,
//	                                                or a dead letter
//
// Every subscription has its own runner, which fetches no more events than it can
// push now and the shared budget of memory allows ([Config.MaxBytesInFlight]): a
// sink that hangs holds up nobody else. An event is acknowledged only when the sink
// took it or its dead letter is stored, which it is too when it is too old to be
// pushed or cannot be read; or when the subscription may not be given it now, of
// which there is no dead letter either ([Subscription.Permit]).
//
// What may enter: dispatching. A sink is a URL here; what it stands for, and who
// may read what, is decided by those who call [Dispatcher.Set].
package dispatch
