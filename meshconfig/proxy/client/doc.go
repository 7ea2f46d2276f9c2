// Package client keeps an ADS stream to a control plane: it subscribes, hands
// each response to a Sink, and acknowledges it or tells why it is refused.
//
// What may enter: the protocol (xDS transport, state of the world). What a
// resource means is the Sink's business.
package client
