// Package examples holds no code: its tests see to it that the examples are
// what the API server and the runtimes take.
package examples
