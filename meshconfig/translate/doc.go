// Package translate turns one Snapshot of the objects into the mesh they mean
// (package ir) and the problems they have. It is pure: no client, no clock, no
// network; the same objects in any order give the same result.
//
// What cannot be translated is closed (a rule that answers 503, a host that is
// not served), never open, and takes no other rule or object down with it.
// Every problem names the object, the field, the reason and the condition it
// becomes, so that writing a status is mechanical.
package translate
