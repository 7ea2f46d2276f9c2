package build

import (
	"context"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/lambdamesh/lambdamesh/lambdas/source"
)

// QueueConfig configures a [Queue].
type QueueConfig struct {
	// Workers is how many builds run at once; default 2.
	Workers int
	// Done is called when a result is there or has changed.
	Done func(ctx context.Context, key types.NamespacedName)
	// MinRetry and MaxRetry bound the pause before what failed for a passing
	// reason is tried again; default 2s and 1m.
	MinRetry, MaxRetry time.Duration
}

// Queue builds in the background, few at a time, and remembers one result for
// each lambda. A namespace waits for none but its own: the next build is one of
// the namespace with the fewest that run.
type Queue struct {
	config QueueConfig

	mu      sync.Mutex
	entries map[types.NamespacedName]*entry
	waiting []types.NamespacedName // in the order in which they came
	running map[string]int         // by namespace
	total   int
	ctx     context.Context //nolint:containedctx // of Run; builds belong to it and not to who asked for them
	builds  sync.WaitGroup
}

// Job makes an artifact.
type Job func(ctx context.Context) (Artifact, error)

// entry is what is known of one lambda.
type entry struct {
	inputs  string // what its build depends on
	job     Job
	queued  bool
	cancel  context.CancelFunc // of the build that runs
	retry   *time.Timer
	fails   int
	done    bool
	result  Artifact
	failure error
	built   string // the note of what was built last
}

// NewQueue returns a queue; Run makes it work.
func NewQueue(config QueueConfig) *Queue {
	if config.Workers == 0 {
		config.Workers = 2
	}
	if config.MinRetry == 0 {
		config.MinRetry = 2 * time.Second
	}
	if config.MaxRetry == 0 {
		config.MaxRetry = time.Minute
	}
	return &Queue{config: config, entries: map[types.NamespacedName]*entry{}, running: map[string]int{}}
}

// Run builds until ctx ends, and returns when no build runs any more.
func (q *Queue) Run(ctx context.Context) error {
	q.mu.Lock()
	q.ctx = ctx
	q.dispatch()
	q.mu.Unlock()
	<-ctx.Done()
	q.mu.Lock()
	q.waiting = nil
	q.mu.Unlock()
	q.builds.Wait()
	return nil
}

// Result returns what building gave, when that is known for these inputs. When
// it is not, the job is queued, in place of one for other inputs.
func (q *Queue) Result(key types.NamespacedName, inputs string, job Job) (artifact Artifact, err error, known bool) { //nolint:revive,staticcheck // err is the result, known is about it
	q.mu.Lock()
	defer q.mu.Unlock()
	e := q.entries[key]
	if e == nil || e.inputs != inputs {
		q.drop(key)
		e = &entry{inputs: inputs, job: job}
		q.entries[key] = e
		q.enqueue(key, e)
	}
	return e.result, e.failure, e.done
}

// Forget drops what is known of a lambda, and ends its build.
func (q *Queue) Forget(key types.NamespacedName) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.drop(key)
}

func (q *Queue) drop(key types.NamespacedName) {
	e := q.entries[key]
	if e == nil {
		return
	}
	delete(q.entries, key)
	if e.cancel != nil {
		e.cancel()
	}
	if e.retry != nil {
		e.retry.Stop()
	}
}

func (q *Queue) enqueue(key types.NamespacedName, e *entry) {
	e.queued = true
	q.waiting = append(q.waiting, key)
	q.dispatch()
}

// dispatch starts what may run now.
func (q *Queue) dispatch() {
	for q.ctx != nil && q.ctx.Err() == nil && q.total < q.config.Workers {
		best := -1
		for i := 0; i < len(q.waiting); i++ {
			if e := q.entries[q.waiting[i]]; e == nil || !e.queued { // dropped, or there twice
				q.waiting = append(q.waiting[:i], q.waiting[i+1:]...)
				i--
				continue
			}
			if best < 0 || q.running[q.waiting[i].Namespace] < q.running[q.waiting[best].Namespace] {
				best = i
			}
		}
		if best < 0 {
			return
		}
		key := q.waiting[best]
		q.waiting = append(q.waiting[:best], q.waiting[best+1:]...)
		q.start(key, q.entries[key])
	}
}

func (q *Queue) start(key types.NamespacedName, e *entry) {
	ctx, cancel := context.WithCancel(q.ctx)
	e.queued, e.cancel = false, cancel
	q.running[key.Namespace]++
	q.total++
	q.builds.Go(func() {
		defer cancel()
		artifact, err := e.job(ctx)
		if q.finish(key, e, artifact, err) {
			q.config.Done(q.ctx, key)
		}
	})
}

// finish tells whether somebody waits for the result, and it is news.
func (q *Queue) finish(key types.NamespacedName, e *entry, artifact Artifact, failure error) bool {
	err := failure
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.running[key.Namespace]--; q.running[key.Namespace] == 0 {
		delete(q.running, key.Namespace)
	}
	q.total--
	defer q.dispatch()
	e.cancel = nil
	if q.entries[key] != e || q.ctx.Err() != nil {
		return false
	}
	before := *e
	switch pause := artifact.Refresh; {
	case err != nil && source.Passing(err):
		if pause = max(q.backoff(e), pause); before.done && before.failure == nil {
			// What was built is as good as before.
			artifact, err = before.result, nil
			artifact.Note = strings.TrimPrefix(before.built+"; it is not known whether there is a newer one: "+failure.Error(), "; ")
		}
		q.again(key, e, pause)
	case pause > 0:
		e.fails = 0
		q.again(key, e, pause)
	default:
		e.fails = 0
	}
	if failure == nil {
		e.built = artifact.Note
	}
	e.done, e.result, e.failure = true, artifact, err
	return !before.done || !reflect.DeepEqual(before.result, artifact) || fmt.Sprint(before.failure) != fmt.Sprint(err)
}

// backoff is the pause after one more failure.
func (q *Queue) backoff(e *entry) time.Duration {
	pause := q.config.MaxRetry
	if e.fails < 16 {
		pause = min(q.config.MinRetry<<e.fails, q.config.MaxRetry)
	}
	e.fails++
	return pause
}

// again queues a build once more after a pause; its result stays until then.
func (q *Queue) again(key types.NamespacedName, e *entry, pause time.Duration) {
	e.retry = time.AfterFunc(pause, func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		if q.entries[key] == e && q.ctx.Err() == nil {
			q.enqueue(key, e)
		}
	})
}
