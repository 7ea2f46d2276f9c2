// Package client keeps an ADS stream to a control plane: it subscribes, hands
// each response to a Sink, and acknowledges it or tells why it is refused. Secrets
// may come from further servers (SDS), as with Istio, whose agent beside the proxy
// serves the workload's certificate.
//
// What may enter: the protocol (xDS transport, delta and state of the world). What a
// resource means is the Sink's business.
package client
