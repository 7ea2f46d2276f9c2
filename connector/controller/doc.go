// Package controller says in the status of Application, ApplicationBinding and
// TokenRequest whether they work, and what to do when they do not. It makes the
// token of a TokenRequest, and removes it when it was used or has expired. It
// changes nothing else: the gateways read the same objects by themselves.
//
// What may enter: reconcilers of the connector's kinds.
package controller
