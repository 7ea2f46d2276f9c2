// Package inbound takes the events of paired systems and passes them on to the
// event bus, through the mesh, as the connector: the bus lets nobody else publish
// for an application. Where an event goes is said by the application of the client
// certificate and never by the request, and the bus makes that application the
// event's source. The bus's answer is the caller's.
//
// What came by a webhook is published here, too ([Gateway.Publish]): its id is
// known for longer, as providers repeat their calls for days.
//
// What may enter: what happens to one request on its way to the bus. Who calls is
// connector/public's.
package inbound
