// Package bootstrap reads Envoy's bootstrap (envoy.config.bootstrap.v3, as YAML
// or JSON) as far as the embedded proxy does what it says, so that one file
// starts either of the two.
//
//	b, err := bootstrap.Read(file, overlay, false)
//	proxy.Config{NodeID: b.NodeID, ADSAddress: b.ControlPlane.Address, RootCAs: b.ControlPlane.RootCAs, ...}
//
// # What a bootstrap may say
//
//   - node: id and cluster, metadata and locality.
//   - admin: an address on loopback. What is there is /ready and
//     /stats/prometheus. An access log to /dev/null.
//   - layered_runtime: static layers with keys that change nothing here (fields.go),
//     and the layer of the admin interface, which has none.
//   - dynamic_resources: clusters and listeners over ADS, by one envoy_grpc
//     service; incremental (DELTA_GRPC) or not (GRPC).
//   - static_resources.listeners: plain HTTP listeners whose routes lead paths to
//     the admin address or to another port on loopback.
//   - static_resources.clusters: the admin address, and the control plane: one
//     address, TLS with a CA file and the name (SAN, DNS) to expect, HTTP/2, and a
//     credential injector whose token lies in a file; or instead a Unix socket,
//     of an agent that speaks to it. Connect timeout and keepalive are the proxy's
//     own. Further Unix sockets with HTTP/2 are SDS servers.
//   - what concerns Envoy's statistics, its log and its process only, and no limit
//     of connections (overload_manager).
//
// That is all that Istio's agent (pilot-agent) writes, but for incremental ADS with
// an agent: ISTIO_DELTA_XDS must be false.
//
// Anything else is refused by its path: what would be overlooked here would hold
// in Envoy. Files are read again when they are needed: the CA for each
// connection, the token for each stream. The address of the control plane must be
// verified by name, because a token is sent there.
//
// What may enter: reading and judging that file. What the proxy does with it is
// decided by its caller.
package bootstrap
