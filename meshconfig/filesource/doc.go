// Package filesource reads a Snapshot from YAML files, for a look at what
// objects mean without a cluster. It does what the controller does with
// informers, and no more: what a file cannot say (fetched keys, a Gateway that
// comes with an installation) is left out or assumed, and said in a note.
package filesource
