// Package ads serves xDS resources to data planes: one gRPC stream per node,
// aggregated (ADS), delta or state of the world.
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
//   - A client of delta xDS is sent what changed and nothing else; a host of a table
//     of routes is a resource of its own (VHDS). What that takes does not depend on
//     how much there is. A response that is refused is halved until the one that is
//     bad is found, and everything else goes on.
//   - A client is sent the next response of a type when it answered the last:
//     a slow one gets only the newest. A refused resource is not sent again
//     until it changes.
//   - [Server.Status] tells which set each connected node acknowledged
//     completely, and what it refused; [Server.Lacking] the same of some resources.
//
// The secrets "default" (the node's own certificate) and "ROOTCA" are made here
// from meshconfig/ca for the authenticated identity and renewed at half of
// their life; secrets in a set ("kubernetes://name") go to gateways only.
//
// The stream loops are our own and the messages, resource names and type URLs are
// go-control-plane's: its snapshot cache answers a refusal at once with the same
// resources, and does not know when a set is acknowledged.
//
// What may enter: delivery of resources and who may have them. What is in them
// is decided by meshconfig/xds.
package ads
