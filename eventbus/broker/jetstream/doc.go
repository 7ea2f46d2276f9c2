// Package jetstream keeps events in NATS JetStream.
//
//	stream LAMBDAMESH_EVENTS       lambdamesh.events.<subject of the event>
//	stream LAMBDAMESH_DEADLETTERS  lambdamesh.deadletters.<consumer>.<event>
//	stream LAMBDAMESH_ATTEMPTS     lambdamesh.attempts
//	stream LAMBDAMESH_SEEN         lambdamesh.seen.<key of the event>
//
// The first two are files that refuse new messages when full, and nothing goes by
// age alone (retention.go); the others forget the oldest. What is read is not validated again. An event is a message whose
// headers are its attributes (as in the CloudEvents NATS binding, values
// percent-encoded) and whose payload is its data. Each subscription has a durable
// pull consumer of its own; the source and id of an event make its Nats-Msg-Id.
//
// What may enter: what the bus asks of JetStream. It is the only importer of
// nats.go; other packages see the vocabulary of package broker.
package jetstream
