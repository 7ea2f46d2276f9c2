// Package connector connects third-party systems: it runs the controllers of
// Application, ApplicationBinding and TokenRequest and the outbound gateway, on
// the listeners it is given.
//
//	lambda -> sidecar -> sidecar -> outbound -> third-party API
//	                                   |
//	              Application, ApplicationBinding, Secret
//
// What may enter here: wiring. What the objects mean is decided in outbound,
// what their status says in controller.
package connector
