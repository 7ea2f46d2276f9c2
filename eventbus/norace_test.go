//go:build !race

package eventbus_test

// raceMemory is how much more memory a program takes with the race detector.
const raceMemory = 1
