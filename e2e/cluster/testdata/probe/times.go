package main

import (
	"slices"
	"time"
)

type times []time.Duration

// at is the time below which the share lies.
func (t times) at(share float64) time.Duration {
	if len(t) == 0 {
		return 0
	}
	slices.Sort(t)
	return t[int(float64(len(t)-1)*share)]
}
