// Package registry is the catalog as a third-party system reads and writes it over
// HTTP:
//
//	POST, GET         /{application}/v1/metadata/services
//	GET, PUT, DELETE  /{application}/v1/metadata/services/{id}
//
//	request -> body -> checked -> Secret, ApplicationService -> controller
//
// Paths, fields and answers are those of Kyma's application registry. A service is
// an ApplicationService, so that kubectl sees and writes the same catalog;
// credentials go into Secrets of the system namespace and are never told again.
//
// Whose catalog it is comes from who serves the request, which has verified the
// client's certificate, and never from the request.
//
// What may enter: the HTTP interface of the catalog. What a document says is read
// in documents, whether a service can be called is decided in outbound.
package registry
