package process_test

import (
	"context"
	"errors"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/pkg/process"
)

func next(s process.Spec) func(context.Context) (process.Spec, error) {
	return func(context.Context) (process.Spec, error) { return s, nil }
}

func TestRestarterGivesUpAfterFailuresInARow(t *testing.T) {
	var pauses []time.Duration
	var failures []string
	err := process.Restarter{
		Next: next(spec("exit", "4")), Min: time.Millisecond, Max: 3 * time.Millisecond, Failures: 4,
		OnFailure: func(err error, pause time.Duration) {
			failures = append(failures, err.Error())
			pauses = append(pauses, pause)
		},
	}.Run(t.Context())
	require.ErrorContains(t, err, "giving up after 4 failures in a row: exit exited with code 4; its last lines:")
	require.Equal(t, []time.Duration{time.Millisecond, 2 * time.Millisecond, 3 * time.Millisecond}, pauses)
	require.Contains(t, failures[0], "exited with code 4")
}

func TestRestarterStartsAgainAndBeginsAnewAfterAStableRun(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	out := make(lines, 10)
	s := spec("sleep")
	s.Stdout = out
	var started []*process.Process
	var pauses []time.Duration
	result := make(chan error, 1)
	children := make(chan *process.Process, 10)
	go func() {
		result <- process.Restarter{
			Next: next(s), Min: time.Millisecond, Max: time.Minute, Stable: time.Nanosecond, Failures: 2,
			OnStart:   func(p *process.Process) { children <- p },
			OnFailure: func(_ error, pause time.Duration) { pauses = append(pauses, pause) },
		}.Run(ctx)
	}()
	for range 3 {
		p := <-children
		require.Equal(t, "running", out.next(t))
		started = append(started, p)
		if len(started) < 3 {
			require.NoError(t, syscall.Kill(p.PID(), syscall.SIGKILL))
		}
	}
	cancel()
	require.NoError(t, <-result)
	require.Equal(t, []time.Duration{time.Millisecond, time.Millisecond}, pauses)
	for _, p := range started {
		require.False(t, alive(p.PID()))
	}
}

func TestRestarterRetriesWhatCannotStart(t *testing.T) {
	calls := 0
	err := process.Restarter{
		Next: func(context.Context) (process.Spec, error) {
			calls++
			if calls == 1 {
				return process.Spec{}, errors.New("no port is free")
			}
			return process.Spec{Path: "/does/not/exist"}, nil
		},
		Min: time.Millisecond, Failures: 2,
	}.Run(t.Context())
	require.ErrorContains(t, err, "giving up after 2 failures in a row: starting exist: exec /does/not/exist")
}

func TestRestarterEndsDuringAPause(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	err := process.Restarter{
		Next: next(spec("exit", "1")), Min: time.Hour,
		OnFailure: func(error, time.Duration) { cancel() },
	}.Run(ctx)
	require.NoError(t, err)
}
