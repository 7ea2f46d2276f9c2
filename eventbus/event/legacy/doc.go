// Package legacy reads and writes events in Kyma's format from before
// CloudEvents: a JSON object when they are published, KYMA-* headers when they are
// pushed.
//
// What may enter: that format and nothing of a broker. It is frozen: new attributes
// exist in CloudEvents only.
package legacy
