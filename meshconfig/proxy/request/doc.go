// Package request is what is known about a request, and everything that
// configuration may ask about it or change in it wherever it stands: matchers of
// strings, headers, query parameters, paths and metadata, formats with
// %OPERATORS%, and header mutations.
//
// What is compiled here is asked for each request, by several goroutines at a
// time: it never changes.
//
// What may enter: questions that more than one of filters, routes and listeners
// ask. What a single filter asks stands in its file.
package request
