// Package targets decides which URLs that users write into objects the system
// may call, so that nobody makes it call what only it can reach (server-side
// request forgery).
//
// A [Policy] is asked twice: when an object is looked at ([Policy.CheckURL]: the
// form and literal addresses) and when a connection is made
// ([Policy.DialContext]: every address the name resolves to, dialed as it was
// checked, so that a name that changes between the two gains nothing).
//
// Allowed are public addresses, the cluster's Services and what the operator
// adds; never link-local, metadata, unspecified and multicast addresses. A
// denied target stays denied whatever is allowed.
//
// Where Services are denied by name, their addresses are refused
// ([Policy.WithServicesByName]).
//
// Where the caller has a sidecar, Services are called through it and never
// dialed ([Policy.WithServiceProxy]).
//
// What may enter: the policy and the transport that keeps to it. Who may write
// which URL is a question of the domains.
package targets
