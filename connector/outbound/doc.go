// Package outbound is the gateway through which lambdas call the APIs of
// applications: http://connector-outbound/<application>/<service>/<path>.
//
// It lets a caller through that an ApplicationBinding of its namespace names,
// adds the credentials that the Application refers to, and streams both ways. The
// caller never sees the credentials and never chooses where they go.
//
// It serves on a listener that only its sidecar can reach: who calls is what the
// sidecar says.
//
// What may enter: what happens to one call. Status and conditions are the
// controller's; which URLs may be called at all is pkg/targets'.
package outbound
