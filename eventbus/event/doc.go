// Package event says what an event is, and how it is read and written:
//
//	HTTP request -> ParseHTTP -> Event -> WriteBinary / JSON -> HTTP request
//
// Parsing is strict and our own: every wrong attribute is named at once, nothing
// is repaired silently. The CloudEvents SDK is the oracle of the tests. Kyma's older
// format is in package legacy.
//
// What may enter: CloudEvents, and pure functions of them. No I/O.
package event
