// Package dispatch hands events to their sinks over HTTP, each at least once.
//
//	durable consumer -> window -> gate -> send -> decide -> settle
//
// A window of events is fetched (window.go); the gate says of each whether it is
// for the subscription and may be sent now (gate.go, breaker.go); it is posted to
// the sink (send.go); what becomes of it is a pure function of the policy, its
// history, the outcome and the time (decide.go); settle does that. The ledger of
// attempts is the one truth of how often an event was sent: retries, status,
// metrics and, through the journal, what is explained and what is known after a
// restart come from it.
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
