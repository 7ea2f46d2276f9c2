package process

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Restarter runs a child and starts it again whenever it ends.
type Restarter struct {
	// Next returns what to start; it is asked before every start.
	Next func(ctx context.Context) (Spec, error)

	// Min is the pause after the first failure, which doubles up to Max with
	// each further one. Zero means 100 milliseconds and 30 seconds.
	Min, Max time.Duration
	// Stable is how long a child must run to make its end a first failure
	// again; 0 means 10 seconds.
	Stable time.Duration
	// Failures is the number of failures in a row after which Run gives up; 0
	// means never.
	Failures int

	// OnStart, if set, is called with every started child.
	OnStart func(p *Process)
	// OnFailure, if set, is called when a child has ended, or could not be
	// started, and will be started again after the pause.
	OnFailure func(err error, pause time.Duration)
}

// Run keeps a child running until ctx ends, then stops it and returns what Stop
// returned. Before that it returns only when it gives up, with the last failure.
func (r Restarter) Run(ctx context.Context) error {
	if r.Min <= 0 {
		r.Min = 100 * time.Millisecond
	}
	if r.Max <= 0 {
		r.Max = 30 * time.Second
	}
	if r.Stable <= 0 {
		r.Stable = 10 * time.Second
	}
	failures := 0
	pause := r.Min
	for ctx.Err() == nil {
		begin := time.Now()
		err := r.once(ctx)
		if ctx.Err() != nil {
			if errors.Is(err, ctx.Err()) {
				return nil // asked to stop while starting: nothing runs
			}
			return err
		}
		if time.Since(begin) >= r.Stable {
			failures, pause = 0, r.Min
		}
		failures++
		if failures == r.Failures {
			return fmt.Errorf("giving up after %d failures in a row: %w", failures, err)
		}
		if r.OnFailure != nil {
			r.OnFailure(err, pause)
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
		pause = min(2*pause, r.Max)
	}
	return nil
}

// once runs one child until it or ctx ends.
func (r Restarter) once(ctx context.Context) error {
	spec, err := r.Next(ctx)
	if err != nil {
		return err
	}
	p, err := Start(ctx, spec)
	if err != nil {
		return err
	}
	if r.OnStart != nil {
		r.OnStart(p)
	}
	return p.runUntil(ctx)
}
