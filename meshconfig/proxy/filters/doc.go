// Package filters has a file for each HTTP filter: its configuration and what a
// route may say about it, checked when it is compiled, and what it does with a
// request. filter.go is what they have in common, and the list of them.
//
//	HttpFilter, typed_per_filter_config -> Entry, Overrides (compiled) -> Decode for each request
//
// What may enter: HTTP filters of Envoy. One that is not here is refused by
// Compile. A new one is a file with its kind, a line in kinds, and its test.
package filters
