// Package conformance holds the conformance suite every broker backend must pass.
//
// [Run] is the definition of what a backend guarantees: an accepted event is
// durable and delivered at least once to every consumer that selects it, source
// and id are deduplicated, consumers never compete, and full storage refuses
// instead of losing. What a broker cannot do itself its backend does for it; what
// cannot be done at all is declared with [Lacks], and skipped aloud.
//
// What may enter: the interface of a backend, the suite, and helpers to make
// events for it.
package conformance
