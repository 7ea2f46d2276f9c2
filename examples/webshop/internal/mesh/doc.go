// Package mesh is a third-party system's way to a Lambdamesh, as to a Kyma: it
// goes from a token's URL to a client certificate, keeps that in a directory and
// renews it, registers services and publishes events with it. It speaks the paths
// and fields that docs/applications.md tells of, and shares no code with the
// connector that serves them.
//
//	dir/client.key       the private key, made here
//	dir/client.crt       the certificate and what it is signed by
//	dir/ca.crt           what verifies the connector
//	dir/connection.json  which application, and the URLs
//
// What may enter: what any paired system does. What this one sells is shop's.
package mesh
