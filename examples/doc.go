// Package examples holds no code: its tests see to it that the examples are
// what the API server and the runtimes take. webshop is a program of its own, a
// third-party system, which shares no code with the mesh.
package examples
