// Package documents reads the documents that third-party systems describe
// themselves by: OpenAPI (and Swagger 2.0) and OData metadata of their APIs,
// AsyncAPI of their events.
//
// What it is given comes from strangers. So a document is bounded in size, depth
// and number of event types; nothing that it refers to is fetched; and what of it
// is kept stands by itself.
//
// What may enter: how a document is read and judged. Where it comes from and
// where it is kept is the business of registry and controller.
package documents
