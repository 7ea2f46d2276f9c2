// Package ads serves xDS resources to data planes: one gRPC stream per node,
// state of the world, aggregated (ADS).
//
//	controller --SetResources(target)--> Server <--ADS stream-- proxy or Envoy
//	           <--OnChange, Status-----         (token, node id)
//
// The controller constructs it with [New], runs it as a component and gives it
// resources per target: a gateway ([GatewayTarget], all its instances get the
// same) or a sidecar (its node id). What the server promises:
//
//   - A stream is served only after its service-account token was verified and
//     the account is the one its node id stands for ([Config].NodeIdentity); a
//     pod's node needs a token that is bound to that very pod.
//   - Never empty: a node whose target has no resources yet waits.
//   - Whole or not at all: a set with an invalid resource is refused with an
//     error that names it, and the former set stays.
//   - Make before break: clusters and endpoints are acknowledged before
//     listeners and routes that use them are sent; clusters that go are kept
//     until listeners and routes were acknowledged.
//   - A client is sent the next response of a type when it answered the last:
//     a slow one gets only the newest. A refused resource is not sent again
//     until it changes.
//   - [Server.Status] tells which set each connected node acknowledged
//     completely, and what it refused.
//
// The secrets "default" (the node's own certificate) and "ROOTCA" are made here
// from meshconfig/ca for the authenticated identity and renewed at half of
// their life; secrets in a set ("kubernetes://name") go to gateways only.
//
// The stream loop is our own and the messages, resource names and type URLs are
// go-control-plane's: its snapshot cache answers a refusal at once with the same
// resources, and does not know when a set is acknowledged.
//
// What may enter: delivery of resources and who may have them. What is in them
// is decided by meshconfig/xds.
package ads
