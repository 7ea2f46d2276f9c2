// Package migrate copies what one store holds into another: events in their
// order, and dead letters.
//
// Each pass reads both stores from the beginning and copies what the target does
// not have, so a pass can be broken off and repeated as often as one likes, also
// while events are still published.
//
// What may enter: moving between stores. What a store is made of stays in its
// package.
package migrate
