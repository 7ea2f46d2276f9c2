// Package controller keeps the dispatcher in step with Subscriptions.
//
//	Subscription + Lambda, Service, ApplicationBinding, EventGrant
//	    -> what may be read (readers.go), where it goes (sink.go)
//	    -> dispatch.Subscription -> durable consumer and dispatch
//	    -> status
//
// Who may publish for an application is told to ingress (publishers.go).
//
// A Subscription that is not permitted, or whose sink is not there, keeps its
// position and dispatches nothing until that changes.
//
// What may enter: what the bus reads from and writes to Kubernetes.
package controller
