package push_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/eventbus/event"
	"github.com/lambdamesh/lambdamesh/eventbus/push"
)

// broker is a source of events whose clock is that of the test's bubble. Every
// consumer has a queue of its own with all events, those from before it included.
type broker struct {
	mu        sync.Mutex
	consumers map[string]*consumer
	stored    []delivery
	acked     []uint64
	extended  int
	naks      []time.Duration
	nakked    []uint64 // sequences, in the order of naks
	removed   []string
	letters   []event.DeadLetter
	lettersOK bool
	ackFails  bool // the next one
}

func newBroker() *broker {
	return &broker{consumers: map[string]*consumer{}, lettersOK: true}
}

type consumer struct {
	b        *broker
	changed  chan struct{}
	queue    []*delivery
	attempts map[uint64]int
	open     map[uint64]time.Time // when those were stored that are not acknowledged
}

type delivery struct {
	b       *broker
	c       *consumer
	e       event.Event
	bad     *event.Unreadable
	seq     uint64
	stored  time.Time
	attempt int
	slow    time.Duration // how long reading it takes
}

func (b *broker) add(seq uint64, id string) {
	b.put(delivery{seq: seq, stored: time.Now(), e: event.Event{
		ID: id, Source: "commerce", Type: "order.created.v1", DataContentType: "application/json", Data: []byte(`{}`),
	}})
}

// put stores an event.
func (b *broker) put(d delivery) {
	b.mu.Lock()
	defer b.mu.Unlock()
	d.b = b
	b.stored = append(b.stored, d)
	for _, c := range b.consumers {
		c.offer(d)
	}
}

// offer puts a delivery into the queue. Call it with mu held.
func (c *consumer) offer(d delivery) {
	d.c = c
	c.queue = append(c.queue, &d)
	c.open[d.seq] = d.stored
	close(c.changed)
	c.changed = make(chan struct{})
}

// again offers a delivery after a while.
func (d *delivery) again(after time.Duration) {
	copied := *d
	time.AfterFunc(after, func() {
		d.b.mu.Lock()
		defer d.b.mu.Unlock()
		d.c.offer(copied)
	})
}

func (b *broker) Subscribe(_ context.Context, spec event.ConsumerSpec) (event.Consumer, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	c, ok := b.consumers[spec.Name]
	if !ok {
		c = &consumer{b: b, changed: make(chan struct{}), attempts: map[uint64]int{}, open: map[uint64]time.Time{}}
		for _, d := range b.stored {
			c.offer(d)
		}
		b.consumers[spec.Name] = c
	}
	return c, nil
}

func (b *broker) Consumer(_ context.Context, name string) (event.Consumer, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if c, ok := b.consumers[name]; ok {
		return c, nil
	}
	return nil, event.ErrNotFound
}

func (b *broker) Unsubscribe(_ context.Context, name string) error {
	b.removed = append(b.removed, name)
	return nil
}

func (c *consumer) Info(context.Context) (event.ConsumerInfo, error) {
	return event.ConsumerInfo{}, nil
}

func (c *consumer) Oldest(context.Context) (oldest time.Time, err error) {
	c.b.mu.Lock()
	defer c.b.mu.Unlock()
	for _, stored := range c.open {
		if oldest.IsZero() || stored.Before(oldest) {
			oldest = stored
		}
	}
	return oldest, nil
}

func (c *consumer) Fetch(ctx context.Context, window event.Window, wait time.Duration, handle func(event.Delivery)) (more bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	for window.Events > 0 {
		c.b.mu.Lock()
		changed := c.changed
		var next *delivery
		if len(c.queue) > 0 && ctx.Err() == nil {
			if next = c.queue[0]; len(next.e.Data) > window.Bytes {
				c.b.mu.Unlock()
				return true, nil
			}
			c.queue = c.queue[1:]
			c.attempts[next.seq]++
			next.attempt = c.attempts[next.seq]
		}
		c.b.mu.Unlock()
		if next != nil {
			window.Events--
			window.Bytes -= len(next.e.Data)
			handle(next)
			continue
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return false, nil
		}
	}
	return false, nil
}

func (b *broker) StoreDeadLetter(_ context.Context, letter *event.DeadLetter) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.lettersOK {
		return errors.New("no space")
	}
	b.letters = append(b.letters, *letter)
	return nil
}

func (d *delivery) Event() *event.Event {
	time.Sleep(d.slow)
	return &d.e
}

func (d *delivery) Unreadable() *event.Unreadable { return d.bad }
func (d *delivery) Sequence() uint64              { return d.seq }
func (d *delivery) Stored() time.Time             { return d.stored }
func (d *delivery) Attempt() int                  { return d.attempt }

func (d *delivery) Ack() error {
	d.b.mu.Lock()
	defer d.b.mu.Unlock()
	if d.b.ackFails {
		d.b.ackFails = false
		d.again(10 * time.Second) // the ack wait
		return errors.New("disconnected")
	}
	d.b.acked = append(d.b.acked, d.seq)
	delete(d.c.open, d.seq)
	return nil
}

func (d *delivery) Retry(delay time.Duration) error {
	d.b.mu.Lock()
	d.b.naks = append(d.b.naks, delay)
	d.b.nakked = append(d.b.nakked, d.seq)
	d.b.mu.Unlock()
	d.again(delay)
	return nil
}

func (d *delivery) Extend() error {
	d.b.mu.Lock()
	defer d.b.mu.Unlock()
	d.b.extended++
	return nil
}

// sink answers requests of the dispatcher without a network.
type sink func(r *http.Request) (*http.Response, error)

func (s sink) RoundTrip(r *http.Request) (*http.Response, error) { return s(r) }

func answer(status int, header ...string) *http.Response {
	r := &http.Response{StatusCode: status, Header: http.Header{}, Body: io.NopCloser(strings.NewReader("body"))}
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	return r
}

func subscription(uid string) push.Subscription {
	return push.Subscription{
		UID: uid, Namespace: "shop", Name: "sub-" + uid,
		Selectors: []event.Selector{{Source: "commerce", Type: "order.**"}},
		Sink:      push.Sink{URL: "http://last-order.shop.svc/", Mesh: true}, Format: push.Binary,
		Timeout: 30 * time.Second, MaxInFlight: 10,
		Retry: push.Retry{MaxAttempts: 4, MinBackoff: time.Second, MaxBackoff: 3 * time.Second, MaxAge: time.Hour},
	}
}

// bubble runs a dispatcher inside a synctest bubble.
func bubble(t *testing.T, s sink, test func(t *testing.T, b *broker, d *push.Dispatcher)) {
	synctest.Test(t, func(t *testing.T) {
		b := newBroker()
		d := push.New(push.Config{Source: b, DeadLetters: b, Mesh: s, Direct: s})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- d.Run(ctx) }()
		test(t, b, d)
		cancel()
		require.NoError(t, <-done)
	})
}

func TestEveryFailureIsRetriedExactlyMaxAttemptsThenDead(t *testing.T) {
	for name, status := range map[string]int{"server error": 500, "client error": 400, "redirect": 302, "informational": 199} {
		t.Run(name, func(t *testing.T) {
			var at []time.Time
			bubble(t, func(*http.Request) (*http.Response, error) {
				at = append(at, time.Now())
				return answer(status, "Location", "http://elsewhere/"), nil
			}, func(t *testing.T, b *broker, d *push.Dispatcher) {
				require.NoError(t, d.Set(t.Context(), subscription("u1")))
				b.add(1, "poison")
				time.Sleep(10 * time.Minute)
				synctest.Wait()
				require.Len(t, at, 4)
				for i, want := range []time.Duration{time.Second, 2 * time.Second, 3 * time.Second} {
					require.InDelta(t, want.Seconds(), at[i+1].Sub(at[i]).Seconds(), 0.2*want.Seconds()+0.001, "backoff %d", i+1)
				}
				require.Len(t, b.letters, 1)
				letter := b.letters[0]
				require.Equal(t, event.ReasonAttemptsExhausted, letter.Reason)
				require.Equal(t, 4, letter.Attempts)
				require.Equal(t, status, letter.LastStatus)
				require.Equal(t, "shop/sub-u1", letter.Subscription)
				require.Equal(t, "poison", letter.Event.ID)
				require.Equal(t, []uint64{1}, b.acked)
				stats, ok := d.Stats("u1")
				require.True(t, ok)
				require.Equal(t, int64(3), stats.Redelivered)
				require.Equal(t, int64(1), stats.DeadLettered)
				require.Zero(t, stats.Delivered)
				require.Contains(t, stats.LastError, "attempt 4 of 4")
				require.True(t, stats.Oldest.IsZero())
			})
		})
	}
}

func TestSuccessAfterFailuresIsDelivered(t *testing.T) {
	n := 0
	bubble(t, func(*http.Request) (*http.Response, error) {
		if n++; n < 3 {
			return nil, errors.New("connection refused")
		}
		return answer(204), nil
	}, func(t *testing.T, b *broker, d *push.Dispatcher) {
		require.NoError(t, d.Set(t.Context(), subscription("u1")))
		b.add(1, "1")
		time.Sleep(time.Minute)
		synctest.Wait()
		stats, _ := d.Stats("u1")
		require.Equal(t, int64(1), stats.Delivered)
		require.False(t, stats.Failing)
		require.Empty(t, b.letters)
		require.Equal(t, []uint64{1}, b.acked)
	})
}

func TestUnstoredDeadLetterIsNotAcknowledged(t *testing.T) {
	requests := 0
	bubble(t, func(*http.Request) (*http.Response, error) {
		requests++
		return answer(500), nil
	}, func(t *testing.T, b *broker, d *push.Dispatcher) {
		b.lettersOK = false
		sub := subscription("u1")
		sub.Retry.MaxAttempts = 1
		require.NoError(t, d.Set(t.Context(), sub))
		b.add(1, "1")
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Empty(t, b.acked)
		b.mu.Lock()
		b.lettersOK = true
		b.mu.Unlock()
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Len(t, b.letters, 1)
		require.Equal(t, []uint64{1}, b.acked)
		require.Equal(t, 1, requests, "no further attempt while its dead letter could not be stored")
	})
}

func TestRetryAfterIsHonoredAndBounded(t *testing.T) {
	for name, tt := range map[string]struct {
		header string
		want   time.Duration
	}{
		"seconds":                 {header: "60", want: time.Minute},
		"shorter than the pause":  {header: "0", want: time.Second},
		"longer than an hour":     {header: "999999", want: time.Hour},
		"nonsense":                {header: "soon", want: time.Second},
		"negative":                {header: "-5", want: time.Second},
		"date in the past":        {header: "Thu, 21 Oct 1999 07:28:00 GMT", want: time.Second},
		"date 100 s from 2000-01": {header: "Sat, 01 Jan 2000 00:01:40 GMT", want: 100 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(*http.Request) (*http.Response, error) { return answer(429, "Retry-After", tt.header), nil },
				func(t *testing.T, b *broker, d *push.Dispatcher) {
					sub := subscription("u1")
					sub.Retry.MaxAge = 24 * time.Hour
					require.NoError(t, d.Set(t.Context(), sub))
					b.add(1, "1")
					synctest.Wait()
					require.Len(t, b.naks, 1)
					require.InDelta(t, tt.want.Seconds(), b.naks[0].Seconds(), 0.2*tt.want.Seconds())
				})
		})
	}
}

func TestMaxAgeEndsRetries(t *testing.T) {
	bubble(t, func(*http.Request) (*http.Response, error) { return answer(500), nil },
		func(t *testing.T, b *broker, d *push.Dispatcher) {
			sub := subscription("u1")
			sub.Retry = push.Retry{MaxAttempts: 100, MinBackoff: 10 * time.Second, MaxBackoff: 10 * time.Second, MaxAge: time.Minute}
			require.NoError(t, d.Set(t.Context(), sub))
			b.add(1, "1")
			time.Sleep(time.Hour)
			synctest.Wait()
			require.Len(t, b.letters, 1)
			require.Equal(t, event.ReasonExpired, b.letters[0].Reason)
			require.InDelta(t, 6, b.letters[0].Attempts, 1)
		})
}

func TestEventThatIsTooOldIsADeadLetterWithoutAnAttempt(t *testing.T) {
	bubble(t, func(*http.Request) (*http.Response, error) { return answer(200), nil },
		func(t *testing.T, b *broker, d *push.Dispatcher) {
			sub := subscription("u1")
			sub.Created = time.Now()
			b.add(1, "1")
			time.Sleep(48 * time.Hour)
			require.NoError(t, d.Set(t.Context(), sub))
			synctest.Wait()
			require.Equal(t, []uint64{1}, b.acked)
			require.Len(t, b.letters, 1)
			require.Equal(t, event.ReasonExpired, b.letters[0].Reason)
			require.Zero(t, b.letters[0].Attempts)
			require.Contains(t, b.letters[0].LastError, "not delivered within 1h")
			stats, _ := d.Stats("u1")
			require.Equal(t, int64(1), stats.DeadLettered)
			require.Zero(t, stats.Delivered)
		})
}

func TestOldEventThatANewSubscriptionAsksForIsNotTooOld(t *testing.T) {
	bubble(t, func(*http.Request) (*http.Response, error) { return answer(200), nil },
		func(t *testing.T, b *broker, d *push.Dispatcher) {
			b.add(1, "1")
			time.Sleep(48 * time.Hour)
			sub := subscription("u1")
			sub.Created = time.Now()
			require.NoError(t, d.Set(t.Context(), sub))
			synctest.Wait()
			require.Equal(t, []uint64{1}, b.acked)
			require.Empty(t, b.letters)
		})
}

func TestWhatGetsTooOldWhileNothingIsPushedIsADeadLetter(t *testing.T) {
	held := func(sub push.Subscription) push.Subscription { sub.Hold = true; return sub }
	for name, hold := range map[string]func(t *testing.T, d *push.Dispatcher, sub push.Subscription){
		"paused from the beginning": func(t *testing.T, d *push.Dispatcher, sub push.Subscription) {
			require.NoError(t, d.Set(t.Context(), held(sub)))
		},
		"paused later": func(t *testing.T, d *push.Dispatcher, sub push.Subscription) {
			require.NoError(t, d.Set(t.Context(), sub))
			synctest.Wait()
			require.NoError(t, d.Set(t.Context(), held(sub)))
		},
		"refused": func(t *testing.T, d *push.Dispatcher, sub push.Subscription) {
			require.NoError(t, d.Set(t.Context(), sub))
			synctest.Wait()
			require.NoError(t, d.Hold(t.Context(), sub))
		},
	} {
		for _, orderBy := range []string{"", "subject"} {
			t.Run(name+" "+orderBy, func(t *testing.T) {
				pushed := map[string]int{}
				bubble(t, func(r *http.Request) (*http.Response, error) {
					pushed[r.Header.Get("Ce-Id")]++
					return answer(200), nil
				}, func(t *testing.T, b *broker, d *push.Dispatcher) {
					sub := subscription("u1")
					sub.Created, sub.OrderBy, sub.Retry.MaxAttempts = time.Now(), orderBy, 1
					hold(t, d, sub)
					for i := range uint64(20) {
						b.keyed(i+1, "old", "a")
					}
					time.Sleep(50 * time.Minute)
					b.keyed(100, "young", "a")
					synctest.Wait()
					require.Empty(t, b.letters)
					time.Sleep(12 * time.Minute)
					synctest.Wait()
					b.mu.Lock()
					require.Len(t, b.letters, 20)
					for _, letter := range b.letters {
						require.Equal(t, event.ReasonExpired, letter.Reason)
						require.Equal(t, "old", letter.Event.ID)
						require.Zero(t, letter.Attempts)
					}
					require.Empty(t, pushed)
					b.mu.Unlock()
					require.NoError(t, d.Set(t.Context(), sub))
					time.Sleep(time.Minute)
					synctest.Wait()
					require.Equal(t, map[string]int{"young": 1}, pushed, "looking for old ones used up no attempt")
				})
			})
		}
	}
}

func TestSubscriptionThatIsRefusedAfterARestartLosesNothingToItsAge(t *testing.T) {
	bubble(t, func(*http.Request) (*http.Response, error) { return answer(200), nil },
		func(t *testing.T, b *broker, d *push.Dispatcher) {
			sub := subscription("u1")
			sub.Created = time.Now()
			require.NoError(t, d.Hold(t.Context(), sub), "one without a position")
			_, err := b.Subscribe(t.Context(), event.ConsumerSpec{Name: "u1"}) // by the process before
			require.NoError(t, err)
			require.NoError(t, d.Hold(t.Context(), sub))
			b.add(1, "1")
			time.Sleep(2 * time.Hour)
			synctest.Wait()
			require.Len(t, b.letters, 1)
			require.Equal(t, event.ReasonExpired, b.letters[0].Reason)
			require.Equal(t, "shop/sub-u1", b.letters[0].Subscription)
		})
}

func TestWhatCannotBeReadIsADeadLetter(t *testing.T) {
	bubble(t, func(*http.Request) (*http.Response, error) { return answer(200), nil },
		func(t *testing.T, b *broker, d *push.Dispatcher) {
			require.NoError(t, d.Set(t.Context(), subscription("u1")))
			bad := &event.Unreadable{Raw: event.Raw{Header: map[string][]string{"ce-id": {"%zz"}}, Data: []byte("raw")}, Err: errors.New("header ce-id is broken")}
			b.put(delivery{seq: 1, stored: time.Now(), bad: bad})
			b.put(delivery{seq: 2, stored: time.Now(), bad: bad, e: event.Event{Source: "erp", Type: "t"}})
			synctest.Wait()
			require.Equal(t, []uint64{1, 2}, slices.Sorted(slices.Values(b.acked)))
			require.Len(t, b.letters, 1, "the other one is not for this subscription")
			require.Equal(t, event.ReasonUnreadable, b.letters[0].Reason)
			require.Equal(t, "header ce-id is broken", b.letters[0].LastError)
			require.Equal(t, &bad.Raw, b.letters[0].Raw)
		})
}

func TestMaxInFlightPushesAtOnce(t *testing.T) {
	var mu sync.Mutex
	now, most := 0, 0
	bubble(t, func(*http.Request) (*http.Response, error) {
		mu.Lock()
		now++
		most = max(most, now)
		mu.Unlock()
		time.Sleep(time.Second)
		mu.Lock()
		now--
		mu.Unlock()
		return answer(200), nil
	}, func(t *testing.T, b *broker, d *push.Dispatcher) {
		require.NoError(t, d.Set(t.Context(), subscription("u1")))
		begin := time.Now()
		for i := range uint64(100) {
			b.add(i+1, "x")
		}
		for {
			stats, _ := d.Stats("u1")
			if stats.Delivered == 100 {
				break
			}
			time.Sleep(100 * time.Millisecond)
		}
		require.Equal(t, 10, most)
		require.InDelta(t, 10, time.Since(begin).Seconds(), 1.5, "ten at a time, a second each")
	})
}

func TestHungSinkDoesNotHoldUpOthers(t *testing.T) {
	bubble(t, func(r *http.Request) (*http.Response, error) {
		if r.URL.Host == "hung" {
			<-r.Context().Done()
			return nil, r.Context().Err()
		}
		return answer(200), nil
	}, func(t *testing.T, b *broker, d *push.Dispatcher) {
		hung := subscription("hung")
		hung.Sink.URL = "http://hung/"
		require.NoError(t, d.Set(t.Context(), hung))
		require.NoError(t, d.Set(t.Context(), subscription("healthy")))
		for i := range uint64(500) {
			b.add(i+1, "x")
		}
		synctest.Wait()
		stats, _ := d.Stats("healthy")
		require.Equal(t, int64(500), stats.Delivered, "at once: nobody waits for the one that hangs")
		b.mu.Lock()
		require.Len(t, b.consumers["hung"].queue, 490, "no more is fetched than can be pushed")
		require.Empty(t, b.consumers["healthy"].queue)
		require.Zero(t, b.extended)
		b.mu.Unlock()
		time.Sleep(10 * time.Second)
		b.mu.Lock()
		defer b.mu.Unlock()
		require.Equal(t, 30, b.extended, "the broker is told that the pushes go on")
	})
}

func TestHoldKeepsEventsAndAnEditTakesEffectAtOnce(t *testing.T) {
	var hosts []string
	bubble(t, func(r *http.Request) (*http.Response, error) {
		hosts = append(hosts, r.URL.Host)
		return answer(200), nil
	}, func(t *testing.T, b *broker, d *push.Dispatcher) {
		require.NoError(t, d.Set(t.Context(), subscription("u1")))
		synctest.Wait()
		require.NoError(t, d.Hold(t.Context(), subscription("u1")))
		synctest.Wait()
		b.add(1, "1")
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Empty(t, hosts)
		sub := subscription("u1")
		sub.Sink.URL = "http://elsewhere.shop.svc/"
		require.NoError(t, d.Set(t.Context(), sub))
		synctest.Wait()
		require.Equal(t, []string{"elsewhere.shop.svc"}, hosts)
	})
}

func TestWhatIsNoLongerSelectedIsNotPushed(t *testing.T) {
	bubble(t, func(*http.Request) (*http.Response, error) { return answer(200), nil },
		func(t *testing.T, b *broker, d *push.Dispatcher) {
			sub := subscription("u1")
			sub.Selectors = []event.Selector{{Source: "commerce", Type: "invoice.**"}}
			require.NoError(t, d.Set(t.Context(), sub))
			b.add(1, "1")
			synctest.Wait()
			stats, _ := d.Stats("u1")
			require.Zero(t, stats.Delivered)
			require.Equal(t, []uint64{1}, b.acked)
		})
}

func TestRemoveDeletesTheConsumer(t *testing.T) {
	bubble(t, func(*http.Request) (*http.Response, error) { return answer(200), nil },
		func(t *testing.T, b *broker, d *push.Dispatcher) {
			require.NoError(t, d.Set(t.Context(), subscription("u1")))
			require.NoError(t, d.Remove(t.Context(), "u1"))
			require.Equal(t, []string{"u1"}, b.removed)
			b.add(1, "1")
			time.Sleep(time.Minute)
			synctest.Wait()
			require.Empty(t, b.acked)
			_, ok := d.Stats("u1")
			require.False(t, ok)
		})
}

func TestShutdownFinishesWhatIsInFlightAndGivesBackTheRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBroker()
		s := sink(func(r *http.Request) (*http.Response, error) {
			if r.Header.Get("Ce-Id") == "hangs" {
				<-r.Context().Done()
				return nil, r.Context().Err()
			}
			time.Sleep(5 * time.Second)
			return answer(200), nil
		})
		d := push.New(push.Config{Source: b, DeadLetters: b, Mesh: s, Direct: s, DrainTimeout: 10 * time.Second})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- d.Run(ctx) }()
		require.NoError(t, d.Set(t.Context(), subscription("u1")))
		b.add(1, "slow")
		b.add(2, "hangs")
		synctest.Wait()
		begin := time.Now()
		cancel()
		synctest.Wait()
		b.add(3, "too late")
		require.NoError(t, <-done)
		require.Equal(t, 10*time.Second, time.Since(begin))
		require.Equal(t, []uint64{1}, b.acked)
		require.Equal(t, []time.Duration{0}, b.naks, "the one cut off is given back")
		require.Empty(t, b.letters)
	})
}

func TestFormats(t *testing.T) {
	e := event.Event{
		ID: "1", Source: "/shop/käse", Type: "order.created.v1", Time: time.Date(2018, 11, 2, 22, 8, 41, 0, time.UTC), DataContentType: "application/json",
		Extensions: map[string]string{"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "region": "eu"}, Data: []byte(`{"a":1}`),
	}
	for format, want := range map[push.Format]struct {
		header map[string]string
		body   string
	}{
		push.Binary: {body: `{"a":1}`, header: map[string]string{
			"Content-Type": "application/json", "Ce-Id": "1", "Ce-Source": "/shop/k%C3%A4se", "Ce-Type": "order.created.v1",
			"Ce-Specversion": "1.0", "Ce-Region": "eu", "Ce-Time": "2018-11-02T22:08:41Z",
		}},
		push.Structured: {
			body: `{"specversion":"1.0","id":"1","source":"/shop/käse","type":"order.created.v1","time":"2018-11-02T22:08:41Z",` +
				`"datacontenttype":"application/json","region":"eu","traceparent":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01","data":{"a":1}}`,
			header: map[string]string{"Content-Type": "application/cloudevents+json; charset=UTF-8", "Ce-Id": ""},
		},
		push.Legacy: {body: `{"a":1}`, header: map[string]string{
			"Content-Type": "application/json", "KYMA-Event-Type": "order.created", "KYMA-Event-Type-Version": "v1", "KYMA-Event-ID": "1",
			"KYMA-Source-ID": "/shop/k%C3%A4se", "KYMA-Event-Time": "2018-11-02T22:08:41Z", "Kyma-Subscription": "sub-u1", "Ce-Id": "",
		}},
	} {
		t.Run(string(format), func(t *testing.T) {
			var got *http.Request
			var body []byte
			bubble(t, func(r *http.Request) (*http.Response, error) {
				got = r
				body, _ = io.ReadAll(r.Body)
				return answer(200), nil
			}, func(t *testing.T, b *broker, d *push.Dispatcher) {
				sub := subscription("u1")
				sub.Format = format
				sub.Selectors[0].Source = e.Source
				require.NoError(t, d.Set(t.Context(), sub))
				b.put(delivery{seq: 1, stored: time.Now(), e: e})
				synctest.Wait()
				require.NotNil(t, got)
				require.Equal(t, want.body, string(body))
				for name, value := range want.header {
					require.Equal(t, value, got.Header.Get(name), name)
				}
				require.Equal(t, e.Extensions["traceparent"], got.Header.Get("Traceparent"))
			})
		})
	}
}

func TestDeadLetterSinkGetsAStoredLetterOnce(t *testing.T) {
	var toDead []*http.Request
	bubble(t, func(r *http.Request) (*http.Response, error) {
		if r.URL.Host == "dead" {
			toDead = append(toDead, r)
		}
		return answer(500), nil
	}, func(t *testing.T, b *broker, d *push.Dispatcher) {
		sub := subscription("u1")
		sub.Retry.MaxAttempts = 2
		sub.DeadLetter = &push.Sink{URL: "https://dead/"}
		require.NoError(t, d.Set(t.Context(), sub))
		b.add(1, "1")
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Len(t, toDead, 1)
		require.Equal(t, "AttemptsExhausted", toDead[0].Header.Get("Lambdamesh-Dead-Letter-Reason"))
		require.Equal(t, "2", toDead[0].Header.Get("Lambdamesh-Dead-Letter-Attempts"))
		require.Equal(t, []uint64{1}, b.acked)
	})
}

func TestChangedStatsAreReportedAtMostOncePerSecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBroker()
		reports := 0
		s := sink(func(*http.Request) (*http.Response, error) { return answer(200), nil })
		d := push.New(push.Config{Source: b, DeadLetters: b, Mesh: s, Direct: s, Changed: func(namespace, name string) {
			require.Equal(t, "shop/sub-u1", namespace+"/"+name)
			reports++
		}})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- d.Run(ctx) }()
		require.NoError(t, d.Set(t.Context(), subscription("u1")))
		for i := range uint64(50) {
			b.add(i+1, "x")
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		require.Equal(t, 1, reports)
		cancel()
		require.NoError(t, <-done)
	})
}

func TestLostAcknowledgementIsNoFailureOfTheSink(t *testing.T) {
	requests := 0
	bubble(t, func(*http.Request) (*http.Response, error) {
		requests++
		return answer(200), nil
	}, func(t *testing.T, b *broker, d *push.Dispatcher) {
		b.ackFails = true
		sub := subscription("u1")
		sub.Retry.MaxAttempts = 1
		require.NoError(t, d.Set(t.Context(), sub))
		b.add(1, "1")
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Equal(t, 1, requests)
		require.Equal(t, []uint64{1}, b.acked)
		require.Empty(t, b.letters)
		stats, _ := d.Stats("u1")
		require.Equal(t, int64(1), stats.Delivered)
		require.True(t, stats.Oldest.IsZero())
	})
}

func TestBytesInFlightToSinksThatHangAreBounded(t *testing.T) {
	const large = 1 << 20
	var mu sync.Mutex
	var now, most int64
	fast := map[string]int{}
	s := sink(func(r *http.Request) (*http.Response, error) {
		if !strings.HasPrefix(r.URL.Host, "hung") {
			mu.Lock()
			defer mu.Unlock()
			fast[r.URL.Host]++
			return answer(200), nil
		}
		mu.Lock()
		now += r.ContentLength
		most = max(most, now)
		mu.Unlock()
		<-r.Context().Done()
		mu.Lock()
		defer mu.Unlock()
		now -= r.ContentLength
		return nil, r.Context().Err()
	})
	synctest.Test(t, func(t *testing.T) {
		b := newBroker()
		const budget = 100 << 20
		d := push.New(push.Config{Source: b, DeadLetters: b, Mesh: s, Direct: s, MaxBytesInFlight: budget})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- d.Run(ctx) }()
		for i := range uint64(40) {
			b.put(delivery{seq: i + 1, stored: time.Now(), e: event.Event{ID: "x", Source: "commerce", Type: "order.created.v1", Data: make([]byte, large)}})
		}
		for i := range 50 {
			sub := subscription(fmt.Sprint("hung", i))
			sub.MaxInFlight, sub.Sink.URL = 100, fmt.Sprintf("http://hung%d/", i)
			require.NoError(t, d.Set(t.Context(), sub))
		}
		synctest.Wait()
		mu.Lock()
		require.LessOrEqual(t, most, int64(budget))
		require.Greater(t, now, int64(budget/3), "and it is used")
		mu.Unlock()
		// Neither a neighbor in the same namespace nor another tenant waits for a
		// sink that hangs, with large events or small ones.
		for _, namespace := range []string{"shop", "other"} {
			sub := subscription("fast-" + namespace)
			sub.Namespace, sub.Sink.URL = namespace, "http://fast-"+namespace+"/"
			require.NoError(t, d.Set(t.Context(), sub))
		}
		time.Sleep(time.Second)
		synctest.Wait()
		mu.Lock()
		require.Equal(t, map[string]int{"fast-shop": 40, "fast-other": 40}, fast)
		mu.Unlock()
		for i := range uint64(100) {
			b.add(1000+i, "small")
		}
		time.Sleep(time.Second)
		synctest.Wait()
		mu.Lock()
		require.Equal(t, map[string]int{"fast-shop": 140, "fast-other": 140}, fast)
		mu.Unlock()
		time.Sleep(10 * time.Minute)
		mu.Lock()
		require.LessOrEqual(t, most, int64(budget), "also after retries")
		mu.Unlock()
		cancel()
		require.NoError(t, <-done)
	})
}
