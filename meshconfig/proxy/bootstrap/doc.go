// Package bootstrap reads Envoy's bootstrap (envoy.config.bootstrap.v3, as YAML
// or JSON) as far as the embedded proxy does what it says, so that one file
// starts either of the two.
//
//	b, err := bootstrap.Read(file, overlay)
//	proxy.Config{NodeID: b.NodeID, ADSAddress: b.ControlPlane.Address, RootCAs: b.ControlPlane.RootCAs, ...}
//
// # What a bootstrap may say
//
//   - node: id and cluster.
//   - admin: an address on loopback. What is there is /ready and
//     /stats/prometheus.
//   - layered_runtime: static layers with re2.max_program_size.error_level, which
//     our regular expressions need not be told.
//   - dynamic_resources: clusters and listeners over ADS, by one envoy_grpc
//     service.
//   - static_resources.listeners: plain HTTP listeners whose routes lead exact
//     paths to the admin address.
//   - static_resources.clusters: the admin address, and the control plane: one
//     address, TLS with a CA file and the name (SAN, DNS) to expect, HTTP/2, and a
//     credential injector whose token lies in a file. Connect timeout and
//     keepalive are the proxy's own.
//
// Anything else is refused by its path: what would be overlooked here would hold
// in Envoy. Files are read again when they are needed: the CA for each
// connection, the token for each stream. The address of the control plane must be
// verified by name, because a token is sent there.
//
// What may enter: reading and judging that file. What the proxy does with it is
// decided by its caller.
package bootstrap
