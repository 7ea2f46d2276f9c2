// Package telemetry makes what a process says about itself: a slog logger, also
// as controller-runtime's logr, and a Prometheus registry. Both are values that
// are passed on; nothing here is global.
//
// What may enter: signals every process has. A metric belongs beside the code
// that counts.
package telemetry
