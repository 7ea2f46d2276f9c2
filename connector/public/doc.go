// Package public is the connector's port for third-party systems. It ends TLS,
// knows who calls by the client certificate, and hands the request to whom it is
// for:
//
//	GET      /v1/applications/signingRequests/info?token=   connector/pairing
//	POST     /v1/applications/certificates?token=           "
//	GET      /v1/applications/management/info               " (client certificate)
//	POST     /v1/applications/certificates/renewals         "
//	POST     /v1/applications/certificates/revocations      "
//	any      /{application}/v1/metadata/services[/{id}]     [Registry] (client certificate)
//	POST     /{application}/v1/events, /{application}/events, and
//	GET      /{application}/v1/events/subscribed            [Events] (client certificate)
//
// A client certificate is asked for and not demanded, since who pairs has none
// yet. One that is shown must be good: signed by the authority of applications,
// in its time, and one of those that the Application's status lists. That is
// checked in the handshake and again for each request, and a connection whose
// certificate is no longer good is closed: all of it from watched objects in
// memory, without asking the API server.
//
// Which application a certificate is of is read in one place ([Clients]) and
// passed on as an argument; nothing that the request says can change it.
//
// Webhooks come under names of their own (names.go), without client certificates:
//
//	POST     /webhooks/{application}/{name}                 [Webhooks]
//
// configFor tells the names apart in the handshake, and the handler holds each
// request to the name of its handshake.
//
// What may enter: TLS, who calls, and the way to the handlers. What they do is
// theirs.
package public
