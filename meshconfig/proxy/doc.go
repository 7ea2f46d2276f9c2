// Package proxy is the embedded data plane: an xDS client that compiles what it
// is served into HTTP handlers. It stands where an Envoy stands and knows
// nothing but xDS.
//
//	p, err := proxy.New(proxy.Config{NodeID: ..., ADSAddress: ..., RootCAs: ..., Token: ..., Listen: ...})
//	err = p.Run(ctx) // a component: p.Ready() is closed when the first listeners serve
//
//	client    the ADS stream: subscribes, acknowledges or refuses
//	compile   a resource, judged and made ready: listeners, routes, clusters, secrets
//	filters   a file for each HTTP filter
//	request   what may be asked about a request, and changed in it, anywhere
//	strict    reading a message so that nothing is overlooked; extensions that are inert
//	serve     sockets, connections, requests: sanitize, route, filters, forward
//
// Imports go from serve to compile to filters to request to strict; client knows
// none of them. bootstrap reads the file that a proxy is started with.
//
// # What it promises
//
// What it accepts behaves as in Envoy; what it does not fully implement and
// could change an answer is refused (NACK) with a message that names resource
// and field. A response is taken whole or not at all (the control plane then halves
// it, when it was one of delta xDS), and the last good configuration stays, also without a control plane. A new configuration
// replaces the old one between two requests: connections survive, sockets stay
// open while any listener has their address, and a filter chain whose TLS or
// connection settings changed drains while its successor takes new connections.
// A listener waits for its routes and secrets before it serves; its address is
// bound before it is acknowledged. A certificate that does not come within its
// initial_fetch_timeout leaves its filter chain refusing handshakes, and the
// others serve.
//
// # What it covers
//
// Listeners on TCP and Unix sockets, filter chains by server name,
// downstream and upstream TLS from 1.2 with certificates and validation over SDS
// and SAN matchers (URI, DNS); the HTTP connection manager with RDS or inline
// routes and hosts over VHDS, path normalization, early removal of headers, header rules, X-Forwarded-*, client certificate
// details, local replies, websocket upgrades; PROXY protocol version 2; the filters
// jwt_authn (inlined key sets), api_key_auth, rbac, local_ratelimit, buffer, cors and
// router; routes by path, headers and query to clusters,
// weighted clusters, redirects and direct responses, with timeouts, retries and
// rewrites; clusters of type EDS, STATIC and DNS with round robin, least request
// and random, circuit breakers, and transport sockets chosen by endpoint. The ADS
// server may be an agent of this machine, Istio's for example, and certificates may
// come from further SDS servers on Unix sockets. Nothing is redirected here, so that
// clusters of type ORIGINAL_DST have no endpoint.
//
// # Where it differs, on purpose
//
//   - X-Envoy-* request headers are removed on every listener and never obeyed;
//     x-envoy-upstream-service-time and the like are not added.
//   - Request trailers that tell who asks (pkg/apis/headers) are dropped.
//   - A token that is given twice, in two places or in two headers, is refused
//     (401), and so is one without a key id.
//   - A secret without initial_fetch_timeout is waited for as long as it takes,
//     where Envoy waits for 15 seconds.
//   - Cipher suites and curves are those of the list; their order is Go's.
//   - A request header must arrive within 5 seconds unless configured.
//   - A cluster with TLS and without a validation context is refused; Envoy would
//     trust any server.
//   - Outlier detection is accepted and does nothing. max_connections limits
//     requests of HTTP/1.1 clusters, not connections. DNS names are resolved when
//     connecting.
//   - The buffer filter keeps nothing: a body that is too large breaks off on its
//     way to the upstream. Bodies over 64 KiB are not mirrored.
//   - It is no Envoy and says so: Server is lambdamesh unless server_name is set.
//   - X-Forwarded-Client-Cert holds Hash, URI, Subject and DNS, and no By.
//   - A path with a fragment is refused, also where Envoy is told to cut it off.
//   - A list of revoked certificates is refused unless it is empty.
//   - Local replies to gRPC requests are plain HTTP.
//   - Access logs, tracing and statistics of Envoy are accepted and not written
//     (strict/inert.go has the list of extensions).
//
// What may enter this folder: reading xDS and doing what it says. Nothing here
// knows rules, lambdas or Kubernetes. This package itself only wires the rooms.
package proxy
