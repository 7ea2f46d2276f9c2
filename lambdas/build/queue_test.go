package build_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/types"

	"github.com/lambdamesh/lambdamesh/lambdas/build"
	"github.com/lambdamesh/lambdamesh/lambdas/source"
)

// queue runs in a bubble until the test ends it.
func runQueue(t *testing.T, workers int) (queue *build.Queue, done func() []string, stop func()) {
	t.Helper()
	var mu sync.Mutex // the workers end builds at the same time
	var keys []string
	done = func() []string {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(keys)
	}
	queue = build.NewQueue(build.QueueConfig{Workers: workers, Done: func(_ context.Context, key types.NamespacedName) {
		mu.Lock()
		defer mu.Unlock()
		keys = append(keys, key.String())
	}})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- queue.Run(ctx) }()
	synctest.Wait()
	return queue, done, func() {
		cancel()
		require.NoError(t, <-ended)
	}
}

func key(namespace, name string) types.NamespacedName {
	return types.NamespacedName{Namespace: namespace, Name: name}
}

func gives(image string) build.Job {
	return func(context.Context) (build.Artifact, error) { return build.Artifact{Image: image}, nil }
}

func TestAQueueRemembersWhatItBuilt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		queue, done, stop := runQueue(t, 2)
		defer stop()
		_, _, known := queue.Result(key("a", "x"), "1", gives("x:1"))
		require.False(t, known)
		synctest.Wait()
		require.Equal(t, []string{"a/x"}, done())
		artifact, err, known := queue.Result(key("a", "x"), "1", func(context.Context) (build.Artifact, error) { panic("built twice") })
		require.True(t, known)
		require.NoError(t, err)
		require.Equal(t, "x:1", artifact.Image)

		_, _, known = queue.Result(key("a", "x"), "2", gives("x:2"))
		require.False(t, known, "other inputs, another build")
		synctest.Wait()
		artifact, _, _ = queue.Result(key("a", "x"), "2", nil)
		require.Equal(t, "x:2", artifact.Image)
	})
}

func TestASlowNamespaceKeepsNoOtherWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		queue, done, stop := runQueue(t, 2)
		defer stop()
		slow := func(context.Context) (build.Artifact, error) {
			time.Sleep(time.Hour)
			return build.Artifact{}, nil
		}
		for _, name := range []string{"1", "2", "3", "4"} {
			queue.Result(key("slow", name), "", slow)
		}
		queue.Result(key("quick", "1"), "", gives("q"))
		queue.Result(key("quick", "2"), "", gives("q"))
		time.Sleep(time.Hour + time.Minute)
		synctest.Wait()
		require.ElementsMatch(t, []string{"slow/1", "slow/2", "quick/1", "quick/2"}, done(), "the two that ran, then those whose namespace had none")
		time.Sleep(3 * time.Hour)
		synctest.Wait()
		require.Len(t, done(), 6)
	})
}

func TestWhatMayPassIsTriedAgainAndAMistakeIsNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		queue, done, stop := runQueue(t, 2)
		defer stop()
		var failures []error
		var mu sync.Mutex
		calls := map[string]int{}
		job := func(name string, failure error) build.Job {
			return func(context.Context) (build.Artifact, error) {
				mu.Lock()
				defer mu.Unlock()
				if calls[name]++; calls[name] > 3 {
					return build.Artifact{Image: name}, nil
				}
				return build.Artifact{}, failure
			}
		}
		queue.Result(key("a", "unknown"), "", job("unknown", errors.New("disk full")))
		queue.Result(key("a", "passing"), "", job("passing", source.FailedForNow("no network")))
		queue.Result(key("a", "mistake"), "", job("mistake", source.Failed("main.js:1:1: no")))
		time.Sleep(time.Second)
		synctest.Wait()
		for _, name := range []string{"unknown", "passing", "mistake"} {
			_, err, known := queue.Result(key("a", name), "", nil)
			require.True(t, known)
			failures = append(failures, err)
		}
		require.EqualError(t, errors.Join(failures...), "disk full\nno network\nmain.js:1:1: no")
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Equal(t, map[string]int{"unknown": 4, "passing": 4, "mistake": 1}, calls)
		artifact, err, _ := queue.Result(key("a", "passing"), "", nil)
		require.NoError(t, err)
		require.Equal(t, "passing", artifact.Image)
		require.Len(t, done(), 5, "once for each failure, and for each success")
	})
}

func TestABuildThatNobodyWaitsForEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		queue, done, stop := runQueue(t, 1)
		defer stop()
		ended := 0
		endless := func(ctx context.Context) (build.Artifact, error) {
			<-ctx.Done()
			ended++
			return build.Artifact{}, ctx.Err()
		}
		queue.Result(key("a", "deleted"), "", endless)
		queue.Result(key("a", "changed"), "1", endless)
		synctest.Wait()
		queue.Forget(key("a", "deleted"))
		synctest.Wait()
		queue.Result(key("a", "changed"), "2", gives("changed:2"))
		synctest.Wait()
		require.Equal(t, 2, ended)
		require.Equal(t, []string{"a/changed"}, done())
	})
}

func TestASourceThatMovesIsLookedAtAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		queue, done, stop := runQueue(t, 1)
		defer stop()
		var mu sync.Mutex
		image, failure := "1", error(nil)
		becomes := func(newer string, broken error) {
			mu.Lock()
			defer mu.Unlock()
			image, failure = newer, broken
		}
		job := func(context.Context) (build.Artifact, error) {
			mu.Lock()
			defer mu.Unlock()
			if failure != nil {
				return build.Artifact{Refresh: time.Minute}, failure
			}
			return build.Artifact{Image: image, Note: "commit " + image, Refresh: time.Minute}, nil
		}
		result := func() (string, string) {
			time.Sleep(2 * time.Minute)
			synctest.Wait()
			artifact, err, known := queue.Result(key("a", "x"), "", job)
			require.True(t, known)
			if err != nil {
				return artifact.Image, err.Error()
			}
			return artifact.Image, artifact.Note
		}
		queue.Result(key("a", "x"), "", job)
		is := func(image, told string) {
			t.Helper()
			gotImage, gotTold := result()
			require.Equal(t, image+" "+told, gotImage+" "+gotTold)
		}
		is("1", "commit 1")
		is("1", "commit 1")
		require.Len(t, done(), 1, "what has not changed is no news")
		becomes("2", nil)
		is("2", "commit 2")
		require.Len(t, done(), 2)
		becomes("2", source.FailedForNow("the host is away"))
		is("2", "commit 2; it is not known whether there is a newer one: the host is away")
		is("2", "commit 2; it is not known whether there is a newer one: the host is away")
		becomes("2", source.Failed("main.js:1:1: no"))
		is("", "main.js:1:1: no")
		becomes("3", nil)
		is("3", "commit 3")
	})
}
