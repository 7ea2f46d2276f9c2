// Package webhooks takes the signed calls of third-party systems that cannot show
// a client certificate, and makes each an event of its application:
//
//	POST /webhooks/{application}/{name}
//
//	request -> body, bounded -> signature -> event -> event bus -> 200
//
// Whether a call is what it says depends on nothing but its signature, made with
// a secret that the system and the Secret of the webhook share. What a provider
// does not sign is believed no further than its scheme forces us to: of the
// headers of Shopify and GitHub that is the topic, and nothing else. The id of an
// event is made of what is signed, so that a call that somebody recorded and sends
// again is the event that is stored already, whatever its headers say; with a topic
// that is not signed also at another webhook of its application and provider. Who
// is first with it chooses the topic: types with the one topic that a webhook is
// for, and a secret that is no other webhook's, are the only guard.
//
// Nothing is kept here: the event bus knows which ids it has stored for seven
// days. Who is refused is told so, and not why.
//
// What may enter: how a provider signs and what its calls are as events. How an
// event gets to the bus is inbound's; TLS and names are connector/public's.
package webhooks
