// Package xds writes the mesh (package ir) as Envoy v3 resources, one set per
// data-plane node. It is pure; ads serves what it returns.
//
// What the resources use, and so what a data plane must implement (listeners
// and clusters are of the names below; everything dynamic comes over ADS):
//
//   - Gateway: a listener "<bind>_<port>" per port. HTTP: one filter chain. HTTPS:
//     tls_inspector and a filter chain per server with server_names (none for
//     "*"), DownstreamTlsContext with the SDS secret kubernetes://<name>, ALPN h2
//     and http/1.1. Each chain is one HCM with RDS "http.<port>" (bound to an
//     address: "http.<bind>.<port>") or "https.<port>.<server>".
//   - HTTP filters in this order: envoy.filters.http.cors, .jwt_authn, .rbac,
//     .router. CorsPolicy sits on virtual hosts.
//   - jwt_authn: providers "provider-<hash of issuer and key set>" with issuer, local_jwks
//     inline_string (ir.NoKeys refuses every token), from_headers
//     authorization "Bearer ", forward, payload_in_metadata "jwt",
//     normalize_payload_in_metadata.space_delimited_claims [scp, scope, scopes];
//     requirement_map "any-of-<hash of the names of its providers>"
//     (provider_name or requires_any); a route that needs a token has
//     PerRouteConfig.requirement_name; no rules in the filter.
//   - rbac: in the gateway's filter no rules (it does nothing); a jwt route has
//     RBACPerRoute with ALLOW policies whose principals combine and_ids, or_ids
//     and metadata of filter envoy.filters.http.jwt_authn, path ["jwt", <claim>],
//     value string_match exact or safe_regex, or list_match.one_of string_match
//     exact. In a sidecar the filter's rules ALLOW by
//     principal.authenticated.principal_name exact (a URI SAN); no policies
//     deny all.
//   - Routes match path, prefix or safe_regex; :method and other headers by
//     string_match or present_match; act by cluster, weighted_clusters or
//     direct_response. The last route of every virtual host is a 404.
//   - Sidecar: an inbound listener "inbound_<bind>_<port>" (mutual TLS with SDS
//     "default" and "ROOTCA", require_client_certificate, inline route_config) to a
//     static cluster "inbound|<port>" of a pipe or an address; an egress listener
//     "egress_<bind>_<port>" (an HCM that takes absolute URIs) with RDS
//     "egress.<port>".
//   - Clusters "outbound|<port>||<service>.<namespace>.svc.cluster.local": EDS over
//     ADS, LEAST_REQUEST; with identities an UpstreamTlsContext with SDS and
//     match_typed_subject_alt_names URI exact.
package xds
