package component_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/pkg/component"
)

// journal records what happens in order. Within a synctest bubble the group
// serializes every step the tests look at.
type journal struct{ lines chan string }

func newJournal() journal { return journal{lines: make(chan string, 100)} }

func (j journal) add(line string) { j.lines <- line }

func (j journal) all() []string {
	var lines []string
	for {
		select {
		case line := <-j.lines:
			lines = append(lines, line)
		default:
			return lines
		}
	}
}

// part takes a second to become ready and a second to stop.
func (j journal) part(name string) component.Component {
	return component.New(name, func(ctx context.Context, ready func()) error {
		j.add("start " + name)
		time.Sleep(time.Second)
		ready()
		<-ctx.Done()
		j.add("stop " + name)
		time.Sleep(time.Second)
		j.add("stopped " + name)
		return nil
	})
}

func failing(name string, after time.Duration, err error) component.Component {
	return component.New(name, func(ctx context.Context, ready func()) error {
		ready()
		select {
		case <-time.After(after):
			return err
		case <-ctx.Done():
			return nil
		}
	})
}

func run(ctx context.Context, g *component.Group) <-chan error {
	result := make(chan error, 1)
	go func() { result <- g.Run(ctx) }()
	return result
}

func TestGroupStartsInOrderAndStopsInReverse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := newJournal()
		g := component.NewGroup("all", component.GroupConfig{
			OnReady: func(name string, elapsed time.Duration) {
				require.Equal(t, time.Second, elapsed)
				j.add("ready " + name)
			},
		}, j.part("a"), j.part("b"))
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		result := run(ctx, g)

		<-g.Ready()
		require.Equal(t, []string{"start a", "ready a", "start b", "ready b"}, j.all())

		cancel()
		require.NoError(t, <-result)
		require.Equal(t, []string{"stop b", "stopped b", "stop a", "stopped a"}, j.all())
	})
}

func TestGroupNamesTheComponentThatFailedFirst(t *testing.T) {
	boom := errors.New("boom")
	for name, tc := range map[string]struct {
		component component.Component
		want      string
	}{
		"an error after it was ready": {failing("b", time.Hour, boom), "b: boom"},
		"a return without an error":   {failing("b", time.Hour, nil), "b: ended without being asked to"},
		"an error before it was ready": {
			component.New("b", func(context.Context, func()) error { return boom }), "b: boom",
		},
		"a panic": {
			component.New("b", func(context.Context, func()) error { panic("at the disco") }), "b: panic: at the disco",
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				j := newJournal()
				stopBadly := component.New("c", func(ctx context.Context, ready func()) error {
					ready()
					<-ctx.Done()
					return errors.New("stopped badly")
				})
				g := component.NewGroup("all", component.GroupConfig{}, j.part("a"), tc.component, stopBadly)
				err := g.Run(t.Context())
				require.Error(t, err)
				require.Regexp(t, "^"+tc.want, err.Error())
				require.Equal(t, []string{"start a", "stop a", "stopped a"}, j.all())
			})
		})
	}
}

func TestGroupStartsNothingAboveAComponentThatNeverGotReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := newJournal()
		stuck := component.New("stuck", func(ctx context.Context, _ func()) error {
			<-ctx.Done()
			return ctx.Err()
		})
		g := component.NewGroup("all", component.GroupConfig{}, stuck, j.part("above"))
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		require.NoError(t, g.Run(ctx), "a stop that was asked for is no failure")
		require.Empty(t, j.all())
		select {
		case <-g.Ready():
			t.Fatal("the group is ready though a component never was")
		default:
		}
	})
}

func TestGroupFailsWhenALowerComponentFailsDuringStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stuck := component.New("stuck", func(ctx context.Context, _ func()) error {
			<-ctx.Done()
			return nil
		})
		g := component.NewGroup("all", component.GroupConfig{}, failing("low", time.Second, errors.New("gone")), stuck)
		require.EqualError(t, g.Run(t.Context()), "low: gone")
	})
}

func TestGroupGoesOnStoppingWhenOneComponentHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := newJournal()
		release := make(chan struct{})
		hang := component.New("hang", func(_ context.Context, ready func()) error {
			ready()
			<-release
			return nil
		})
		g := component.NewGroup("all", component.GroupConfig{StopTimeout: 5 * time.Second}, j.part("a"), hang)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		result := run(ctx, g)
		<-g.Ready()

		begin := time.Now()
		cancel()
		require.EqualError(t, <-result, "hang: did not stop within 5s")
		require.Equal(t, 6*time.Second, time.Since(begin))
		require.Equal(t, []string{"start a", "stop a", "stopped a"}, j.all())
		close(release)
	})
}

func TestGroupsNest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := newJournal()
		config := component.GroupConfig{StopTimeout: 3 * time.Second}
		inner := component.NewGroup("inner", config, j.part("b"), j.part("c"))
		require.Equal(t, 7*time.Second, inner.StopTimeout(), "a group needs the time of all its components")
		outer := component.NewGroup("outer", config, j.part("a"), inner, j.part("d"))
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		result := run(ctx, outer)
		<-outer.Ready()
		require.Equal(t, []string{"start a", "start b", "start c", "start d"}, j.all())
		cancel()
		require.NoError(t, <-result)
		require.Equal(t, []string{
			"stop d", "stopped d", "stop c", "stopped c", "stop b", "stopped b", "stop a", "stopped a",
		}, j.all())
	})
}

func TestGroupReportsHowComponentsEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := newJournal()
		boom := errors.New("boom")
		got := map[string]error{}
		g := component.NewGroup("all", component.GroupConfig{
			OnStopped: func(name string, _ time.Duration, err error) { got[name] = err },
		}, j.part("a"), failing("b", time.Second, boom))
		require.ErrorIs(t, g.Run(t.Context()), boom)
		require.Equal(t, map[string]error{"a": nil, "b": boom}, got)
	})
}

func TestGroupRunsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		g := component.NewGroup("all", component.GroupConfig{})
		require.NoError(t, g.Run(ctx))
		require.EqualError(t, g.Run(ctx), "group all: already started")
	})
}

func TestReadyMayBeCalledTwice(t *testing.T) {
	c := component.New("twice", func(_ context.Context, ready func()) error {
		ready()
		ready()
		return nil
	})
	require.NoError(t, c.Run(t.Context()))
	<-c.Ready()
}
