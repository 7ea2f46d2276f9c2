// Package reconcile is the small common part of our reconcilers: conditions
// that tell the truth about one generation, and a status that is written only
// when it changed.
//
// What may enter: what two domains' controllers do alike with any kind of
// pkg/apis. Steps, reasons and messages belong to the controllers.
package reconcile
