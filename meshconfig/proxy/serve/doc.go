// Package serve is the proxy at work: sockets, connections, requests on their
// way through routes and filters to an endpoint, and back.
//
//	socket -> chainServer (net/http) -> exchange: sanitize, route, filters, forward -> cluster
//
// A Server holds what was accepted last. Requests are served with an immutable
// snapshot of it; a new one replaces it between two requests.
//
// What may enter: doing what compile made of a resource.
package serve
