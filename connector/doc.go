// Package connector connects third-party systems: it runs the controllers of
// Application, ApplicationBinding and TokenRequest and the outbound gateway, on
// the listeners it is given.
//
//	lambda -> sidecar -> sidecar -> outbound -> third-party API
//	                                   |   \
//	                                   |    sidecar -> Service of the cluster
//	              Application, ApplicationBinding, Secret
//
// A target of the form <service>.<namespace>.svc is a Service of the cluster: it
// is called through the mesh, with the connector's identity, and has to grant
// lambdamesh-system/connector access. Every other one is dialed, where pkg/targets
// allows it.
//
// What may enter here: wiring. What the objects mean is decided in outbound,
// what their status says in controller.
package connector
