//go:build race

package eventbus_test

// raceMemory is how much more memory a program takes with the race detector:
// five to ten times, says its documentation; what is not the heap takes less.
const raceMemory = 3
