// Package stan keeps events in NATS Streaming, for those who run that broker
// still. Its development has ended: use package jetstream for everything new, and
// `eventbus migrate` to get there.
//
//	channel lambdamesh.events       all events, and markers
//	channel lambdamesh.deadletters  all dead letters, and markers
//
// NATS Streaming stores messages durably, in order and with positions that
// outlive their clients. The rest the bus needs is done here:
//
//   - An acknowledgement names no sequence, and nothing is deduplicated. So the
//     store reads along with each channel ([channel]): that tells the sequence of
//     what it published and which source and id were stored lately.
//   - Channels have no wildcards. A consumer gets every event and acknowledges
//     those it does not select.
//   - There is no retry after a delay and no extension of the ack wait. A consumer
//     holds its events in memory, at most Config.MaxInflight, and counts their
//     attempts ([consumer]); what it forgets at a restart, the server sends again.
//   - The end of a channel cannot be asked for. A marker is published and waited
//     for: what came before it is all there was.
//
// What it cannot do is declared in its conformance test and told to users in
// docs/nats-streaming.md.
//
// What may enter: what the bus asks of NATS Streaming. It is the only importer of
// stan.go; other packages see the vocabulary of package broker.
package stan
