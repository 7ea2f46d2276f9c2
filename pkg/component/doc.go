// Package component says what a long-running part of a process is, and runs
// several of them as one.
//
// A [Component] runs until its context ends and says truthfully when it is
// ready. A [Group] starts components one after the other, each when the one
// before it is ready, and stops them in the reverse order, so that nothing is
// ever asked to work on top of a part that is not there:
//
//	start:  etcd -> API server -> controllers -> gateway
//	stop:   etcd <- API server <- controllers <- gateway
//
// A Group is itself a Component, so groups nest.
//
// What may enter: the interface, the helper that makes one from a function, and
// the group. Restarting, health endpoints and signal handling live with those
// who need them.
package component
