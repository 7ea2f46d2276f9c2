package dispatch_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/eventbus/broker"
	"github.com/lambdamesh/lambdamesh/eventbus/dispatch"
	"github.com/lambdamesh/lambdamesh/eventbus/event"
)

func TestEveryFailureIsRetriedExactlyMaxAttemptsThenDead(t *testing.T) {
	for name, status := range map[string]int{"server error": 500, "client error": 404, "unauthorized": 401, "redirect": 302, "informational": 199} {
		t.Run(name, func(t *testing.T) {
			var at []time.Time
			bubble(t, func(*http.Request) (*http.Response, error) {
				at = append(at, time.Now())
				return answer(status, "Location", "http://elsewhere/"), nil
			}, func(t *testing.T, b *fakeBroker, d *dispatch.Dispatcher) {
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
				require.Equal(t, broker.ReasonAttemptsExhausted, letter.Reason)
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
	}, func(t *testing.T, b *fakeBroker, d *dispatch.Dispatcher) {
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
	}, func(t *testing.T, b *fakeBroker, d *dispatch.Dispatcher) {
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
				func(t *testing.T, b *fakeBroker, d *dispatch.Dispatcher) {
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
		func(t *testing.T, b *fakeBroker, d *dispatch.Dispatcher) {
			sub := subscription("u1")
			sub.Retry = dispatch.Retry{MaxAttempts: 100, MinBackoff: 10 * time.Second, MaxBackoff: 10 * time.Second, MaxAge: time.Minute}
			require.NoError(t, d.Set(t.Context(), sub))
			b.add(1, "1")
			time.Sleep(time.Hour)
			synctest.Wait()
			require.Len(t, b.letters, 1)
			require.Equal(t, broker.ReasonExpired, b.letters[0].Reason)
			require.InDelta(t, 6, b.letters[0].Attempts, 1)
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
	}, func(t *testing.T, b *fakeBroker, d *dispatch.Dispatcher) {
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
	}, func(t *testing.T, b *fakeBroker, d *dispatch.Dispatcher) {
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
	}, func(t *testing.T, b *fakeBroker, d *dispatch.Dispatcher) {
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
		func(t *testing.T, b *fakeBroker, d *dispatch.Dispatcher) {
			sub := subscription("u1")
			sub.Selectors = []broker.Selector{{Source: "commerce", Type: "invoice.**"}}
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
		func(t *testing.T, b *fakeBroker, d *dispatch.Dispatcher) {
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
		d := dispatch.New(dispatch.Config{Source: b, DeadLetters: b, Mesh: s, Direct: s, DrainTimeout: 10 * time.Second})
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
	for format, want := range map[dispatch.Format]struct {
		header map[string]string
		body   string
	}{
		dispatch.Binary: {body: `{"a":1}`, header: map[string]string{
			"Content-Type": "application/json", "Ce-Id": "1", "Ce-Source": "/shop/k%C3%A4se", "Ce-Type": "order.created.v1",
			"Ce-Specversion": "1.0", "Ce-Region": "eu", "Ce-Time": "2018-11-02T22:08:41Z",
		}},
		dispatch.Structured: {
			body: `{"specversion":"1.0","id":"1","source":"/shop/käse","type":"order.created.v1","time":"2018-11-02T22:08:41Z",` +
				`"datacontenttype":"application/json","region":"eu","traceparent":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01","data":{"a":1}}`,
			header: map[string]string{"Content-Type": "application/cloudevents+json; charset=UTF-8", "Ce-Id": ""},
		},
		dispatch.Legacy: {body: `{"a":1}`, header: map[string]string{
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
			}, func(t *testing.T, b *fakeBroker, d *dispatch.Dispatcher) {
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
	}, func(t *testing.T, b *fakeBroker, d *dispatch.Dispatcher) {
		sub := subscription("u1")
		sub.Retry.MaxAttempts = 2
		sub.DeadLetter = &dispatch.Sink{URL: "https://dead/"}
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
		d := dispatch.New(dispatch.Config{Source: b, DeadLetters: b, Mesh: s, Direct: s, Changed: func(namespace, name string) {
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
	}, func(t *testing.T, b *fakeBroker, d *dispatch.Dispatcher) {
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
