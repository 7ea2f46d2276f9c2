// Package ingress takes events over HTTP and stores them before it answers.
//
//	POST /publish                                CloudEvents 1.0 -> 202
//	POST /v1/events                              the legacy format -> 200
//	POST /{application}/events                   CloudEvents of an application
//	POST /{application}/v1/events                the legacy format of an application
//	GET  /{application}/v1/events/subscribed     types somebody subscribed to
//	GET  /v1/status/ready
//
// Who may publish which source is an [Authorizer]'s business, one per listener:
// identities of the mesh, service-account tokens, or, for development, everybody
// on loopback.
//
// What may enter: the HTTP contract of publishing. Where events are stored is a
// [Publisher] this package is given.
package ingress
