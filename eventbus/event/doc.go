// Package event holds the vocabulary of the bus: what an event is, how it is
// read and written, how it is addressed in a broker, and what a broker answers.
//
//	HTTP request -> ParseHTTP / ParseLegacy -> Event -> SubjectOf -> broker
//	broker -> Event -> WriteBinary / JSON / legacy headers -> HTTP request
//
// Parsing is strict and our own: every wrong attribute is named at once, nothing
// is repaired silently. The CloudEvents SDK is the oracle of the tests.
//
// What may enter: values and pure functions of events, and the few values that
// the ingress, the dispatcher and every broker backend share. No I/O.
package event
