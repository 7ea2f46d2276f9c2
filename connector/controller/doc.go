// Package controller says in the status of Application, ApplicationBinding and
// TokenRequest whether they work, and what to do when they do not. It changes
// nothing else: the outbound gateway reads the same objects by itself.
//
// What may enter: reconcilers of the connector's kinds.
package controller
