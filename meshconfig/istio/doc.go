// Package istio writes the mesh (package ir) as Istio objects, for istiod to
// program. It is pure; controller applies what it returns.
//
// A VirtualService per APIRule decides, in order, which rule a request is under
// and sets the rule's id as a header, after the client's copy was removed. The
// AuthorizationPolicy of a lambda lets the gateway in under the ids of its
// rules, and under those that need a token only with the claims they demand; it
// names no paths, since it would see them after a rewrite. A route that needs a
// token copies it into a header of its own, which is all that the lambda's
// RequestAuthentication looks at: a bearer token on a rule without jwt is the
// application's business. A request without a token never gets so far: a route
// before it answers 401, for istiod lets missing tokens pass and the policy's
// answer would be 403. The sidecar is what checks the token, so that such routes
// lead to a subset of the lambda's DestinationRule that is reached by mutual TLS
// alone: no sidecar, no answer.
//
// What MeshConfig must say besides: pathNormalization MERGE_SLASHES.
package istio
