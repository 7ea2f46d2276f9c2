package conformance

import (
	"context"
	"fmt"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/eventbus/broker"
	"github.com/lambdamesh/lambdamesh/eventbus/event"
)

// Backend is all the bus asks of a broker; the ingress, the dispatcher and the
// admin API each declare the part they use.
type Backend interface {
	Publish(ctx context.Context, events []event.Event) ([]broker.Receipt, error)
	Subscribe(ctx context.Context, spec broker.ConsumerSpec) (broker.Consumer, error)
	Unsubscribe(ctx context.Context, name string) error
	StoreDeadLetter(ctx context.Context, letter *broker.DeadLetter) error
	Consumer(ctx context.Context, name string) (broker.Consumer, error)
	DeadLetters(ctx context.Context, consumer string, after uint64, limit int) ([]broker.DeadLetter, error)
}

// Tested is a backend whose broker can be written to past it.
type Tested interface {
	Backend
	// WriteRaw puts a message among the events, as an older or newer bus or
	// somebody else might have: with these attributes and, when broken is set, one
	// that no bus can read.
	WriteRaw(t *testing.T, attributes map[string]string, data []byte, broken bool)
}

// Options shape the backend of one test.
type Options struct {
	// Dir holds the data; opening it again finds what was accepted before.
	Dir string
	// MaxBytes limits the space for events; 0 leaves it at the default.
	MaxBytes int64
	// AckWait is when an unanswered delivery comes again; 0: after the test.
	AckWait time.Duration
}

// Open starts a backend. It is stopped by stop, and at the end of the test.
type Open func(t *testing.T, options Options) (backend Tested, stop func())

// deadline bounds every wait of the suite.
const deadline = time.Minute

// plenty is a window for every event of a test at once.
const plenty = 64 << 20

// Guarantee names a guarantee that not every broker makes possible.
type Guarantee string

// The guarantees a backend may declare to lack; all others are required.
const (
	// RefusesWhenFull: full storage refuses new events, and loses none for them.
	RefusesWhenFull Guarantee = "full storage refuses and keeps what it has"
	// AttemptsOutliveRestart: the attempts of an event are counted on after the
	// bus was started again.
	AttemptsOutliveRestart Guarantee = "attempts are counted on after a restart"
)

// Lacks says which guarantees a backend does not give, each with the reason. Its
// users must be told the same.
type Lacks map[Guarantee]string

// Run holds a backend against the guarantees of the bus.
func Run(t *testing.T, start Open, lacks Lacks) {
	open := func(t *testing.T, options Options) (Tested, func()) {
		if options.AckWait == 0 {
			options.AckWait = time.Hour
		}
		return start(t, options)
	}
	guaranteed := func(guarantee Guarantee, test func(t *testing.T)) {
		t.Run(string(guarantee), func(t *testing.T) {
			if why, lacking := lacks[guarantee]; lacking {
				t.Skipf("the backend declares that it does not guarantee this: %s", why)
			}
			test(t)
		})
	}
	fresh := func(t *testing.T) Tested {
		backend, _ := open(t, Options{Dir: t.TempDir()})
		return backend
	}

	t.Run("an event arrives as it was published", func(t *testing.T) {
		b := fresh(t)
		c := Subscribe(t, b, "c1", broker.Start{}, "/shop/cart", "**")
		want := event.Event{
			ID: "é\"%1", Source: "/shop/cart", Type: "order.created.v1", Subject: "a b/c", Time: time.Date(2018, 4, 5, 17, 31, 0, 5e6, time.UTC),
			DataContentType: `text/xml; charset="utf-8"`, DataSchema: "https://example.com/s?q=1#x",
			Extensions: map[string]string{"comexampleextension1": "Euro € 😀", "n": "42"}, Data: []byte("<much wow=\"xml\"/>\r\n\x00\xff"),
		}
		Publish(t, b, want)
		d := Take(t, c, 1)[0]
		require.Empty(t, cmp.Diff(want, *d.Event()))
		require.Equal(t, 1, d.Attempt())
		require.WithinDuration(t, time.Now(), d.Stored(), time.Minute)
		require.NoError(t, d.Ack())
	})

	t.Run("every event that is valid comes back as it was", func(t *testing.T) {
		b := fresh(t)
		c := Subscribe(t, b, "c1", broker.Start{}, "/shop/cart", "**")
		full := Event("full")
		full.Extensions = map[string]string{"traceparent": strings.Repeat("t", 55), "tracestate": strings.Repeat("s", 512)}
		for i := range 64 {
			full.Extensions[fmt.Sprint("extension", i)] = strings.Repeat("x", 450)
		}
		escaped := Event("escaped")
		escaped.Extensions = map[string]string{}
		for i := range 5 {
			escaped.Extensions[fmt.Sprint("extension", i)] = strings.Repeat("€", 1000) // three bytes, nine as a header
		}
		for _, want := range []event.Event{full, escaped} {
			require.NoError(t, want.Validate())
			Publish(t, b, want)
			d := Take(t, c, 1)[0]
			require.Nil(t, d.Unreadable())
			require.Empty(t, cmp.Diff(want, *d.Event()))
			require.NoError(t, b.StoreDeadLetter(t.Context(), &broker.DeadLetter{Consumer: "c1", Sequence: d.Sequence(), Event: want}))
			require.NoError(t, d.Ack())
		}
		escaped.Extensions["more"] = strings.Repeat("€", 1000)
		require.Error(t, escaped.Validate(), "what no header takes is not accepted")
	})

	t.Run("what was accepted by other rules is delivered", func(t *testing.T) {
		b := fresh(t)
		c := Subscribe(t, b, "c1", broker.Start{}, "/shop/cart", "**")
		want := Event("old")
		want.DataContentType, want.DataSchema = "no media type", "not absolute"
		want.Extensions = map[string]string{"with_underscore": "x\x01y"}
		for i := range 100 {
			want.Extensions[fmt.Sprint("extension", i)] = "x"
		}
		require.Error(t, want.Validate())
		b.WriteRaw(t, maps.Collect(want.Attributes()), want.Data, false)
		d := Take(t, c, 1)[0]
		require.Nil(t, d.Unreadable())
		require.Empty(t, cmp.Diff(want, *d.Event()))
	})

	t.Run("what cannot be read comes as it is stored, and can be a dead letter", func(t *testing.T) {
		b := fresh(t)
		c := Subscribe(t, b, "c1", broker.Start{}, "/shop/cart", "**")
		other := Subscribe(t, b, "c2", broker.Start{}, "/shop/other", "**")
		e := Event("broken")
		e.Data = []byte("payload \x00\xff")
		b.WriteRaw(t, maps.Collect(e.Attributes()), e.Data, true)
		d := Take(t, c, 1)[0]
		bad := d.Unreadable()
		require.NotNil(t, bad)
		require.Error(t, bad.Err)
		require.Contains(t, string(bad.Data), string(e.Data))
		require.Equal(t, e.Type, d.Event().Type, "what can be read is")
		letter := broker.DeadLetter{
			Subscription: "shop/sub", Consumer: "c1", Sequence: d.Sequence(), Stored: d.Stored().UTC(), Reason: broker.ReasonUnreadable,
			LastError: bad.Err.Error(), Event: *d.Event(), Raw: &bad.Raw,
		}
		require.NoError(t, b.StoreDeadLetter(t.Context(), &letter))
		require.NoError(t, d.Ack())
		got, err := b.DeadLetters(t.Context(), "c1", 0, 10)
		require.NoError(t, err)
		require.Len(t, got, 1)
		require.Equal(t, letter.Reason, got[0].Reason)
		require.Equal(t, letter.LastError, got[0].LastError)
		require.Empty(t, cmp.Diff(bad.Raw, *got[0].Raw))
		require.Equal(t, e.ID, got[0].Event.ID)
		Nothing(t, c)
		Nothing(t, other)
	})

	t.Run("a fetch brings no more than its window", func(t *testing.T) {
		b := fresh(t)
		c := Subscribe(t, b, "c1", broker.Start{}, "", "**")
		for i := range 4 {
			e := Event(fmt.Sprint(i))
			e.Data = make([]byte, 100<<10)
			Publish(t, b, e)
		}
		for _, tt := range []struct {
			window broker.Window
			want   int
			more   bool
		}{
			{broker.Window{Events: 10, Bytes: 50 << 10}, 0, true},
			{broker.Window{Events: 10, Bytes: 250 << 10}, 2, true},
			{broker.Window{Events: 1, Bytes: 250 << 10}, 1, false},
		} {
			n := 0
			begin := time.Now()
			more, err := c.Fetch(t.Context(), tt.window, deadline, func(d broker.Delivery) {
				n++
				require.Equal(t, 1, d.Attempt(), "what did not fit was not delivered")
				require.NoError(t, d.Ack())
			})
			require.NoError(t, err)
			require.Equal(t, tt.want, n)
			require.Equal(t, tt.more, more)
			require.Less(t, time.Since(begin), deadline/2)
		}
		more, err := c.Fetch(t.Context(), broker.Window{Events: 10, Bytes: plenty}, time.Second, func(broker.Delivery) {})
		require.NoError(t, err)
		require.False(t, more)
	})

	t.Run("the oldest event a consumer is not done with is known", func(t *testing.T) {
		b := fresh(t)
		c := Subscribe(t, b, "c1", broker.Start{}, "", "**")
		oldest, err := c.Oldest(t.Context())
		require.NoError(t, err)
		require.Zero(t, oldest)
		elsewhere := Event("0")
		elsewhere.Source = "erp"
		Publish(t, b, elsewhere, Event("1"))
		Publish(t, b, Event("2"))
		is := func(want time.Time) func() bool {
			return func() bool {
				oldest, err := c.Oldest(t.Context())
				require.NoError(t, err)
				return oldest.Equal(want)
			}
		}
		got := Take(t, c, 2)
		require.Eventually(t, is(got[0].Stored()), deadline, 10*time.Millisecond)
		require.NoError(t, got[0].Ack())
		require.Eventually(t, is(got[1].Stored()), deadline, 10*time.Millisecond)
		require.NoError(t, got[1].Ack())
		require.Eventually(t, is(time.Time{}), deadline, 10*time.Millisecond)
	})

	t.Run("a consumer is found by its name", func(t *testing.T) {
		b := fresh(t)
		_, err := b.Consumer(t.Context(), "c1")
		require.ErrorIs(t, err, broker.ErrNotFound)
		Subscribe(t, b, "c1", broker.Start{}, "", "**")
		Publish(t, b, Event("1"))
		c, err := b.Consumer(t.Context(), "c1")
		require.NoError(t, err)
		require.Len(t, Take(t, c, 1), 1)
	})

	t.Run("sequences grow and name the event in its delivery", func(t *testing.T) {
		b := fresh(t)
		c := Subscribe(t, b, "c1", broker.Start{}, "/shop/cart", "**")
		receipts := Publish(t, b, Event("1"), Event("2"), Event("3"))
		require.Equal(t, []string{"1", "2", "3"}, []string{receipts[0].ID, receipts[1].ID, receipts[2].ID})
		for i, d := range Take(t, c, 3) {
			require.Equal(t, receipts[i].Sequence, d.Sequence())
			require.NoError(t, d.Ack())
		}
	})

	t.Run("many concurrent publishers each get their own receipt", func(t *testing.T) {
		b := fresh(t)
		c := Subscribe(t, b, "c1", broker.Start{}, "/shop/cart", "**")
		const n = 300
		sequences := make([]uint64, n)
		var publishers sync.WaitGroup
		for i := range n {
			publishers.Go(func() {
				receipts, err := b.Publish(t.Context(), []event.Event{Event(fmt.Sprint(i))})
				if err == nil {
					sequences[i] = receipts[0].Sequence
				}
			})
		}
		publishers.Wait()
		byID := map[string]uint64{}
		for _, d := range Take(t, c, n) {
			byID[d.Event().ID] = d.Sequence()
			require.NoError(t, d.Ack())
		}
		for i := range n {
			require.Equal(t, byID[fmt.Sprint(i)], sequences[i], "event %d", i)
		}
	})

	t.Run("the same source and id is stored once", func(t *testing.T) {
		b := fresh(t)
		c := Subscribe(t, b, "c1", broker.Start{}, "", "**")
		first := Publish(t, b, Event("1"))[0]
		again := Publish(t, b, Event("1"))[0]
		require.Equal(t, first.Sequence, again.Sequence)
		require.True(t, again.Duplicate)
		other := Event("1")
		other.Source = "/shop/other"
		require.False(t, Publish(t, b, other)[0].Duplicate, "the same id of another source is another event")
		require.Len(t, Take(t, c, 2), 2)
		Nothing(t, c)
	})

	t.Run("duplicates among many are stored once and all are answered", func(t *testing.T) {
		b := fresh(t)
		c := Subscribe(t, b, "c1", broker.Start{}, "", "**")
		Publish(t, b, Event("7"))
		var batch []event.Event
		for i := range 40 {
			batch = append(batch, Event(fmt.Sprint(i%20)))
		}
		receipts := Publish(t, b, batch...)
		for i := range 20 {
			require.Equal(t, receipts[i].Sequence, receipts[i+20].Sequence)
			require.True(t, receipts[i+20].Duplicate)
		}
		require.True(t, receipts[7].Duplicate)
		require.Len(t, Take(t, c, 20), 20)
		Nothing(t, c)
	})

	t.Run("accepted events and positions outlive a restart", func(t *testing.T) {
		options := Options{Dir: t.TempDir()}
		b, stop := open(t, options)
		c := Subscribe(t, b, "c1", broker.Start{}, "", "**")
		receipts := Publish(t, b, Event("1"), Event("2"), Event("3"))
		require.NoError(t, Take(t, c, 1)[0].Ack())
		require.Eventually(t, func() bool { return waiting(t, c).Unacknowledged == 0 }, deadline, 10*time.Millisecond)
		stop()

		b, _ = open(t, options)
		require.True(t, Publish(t, b, Event("1"))[0].Duplicate, "deduplication outlives a restart")
		c = Subscribe(t, b, "c1", broker.Start{}, "", "**")
		rest := Take(t, c, 2)
		require.Equal(t, receipts[1].Sequence, rest[0].Sequence())
		require.Equal(t, receipts[2].Sequence, rest[1].Sequence())
	})

	t.Run("consumers never compete", func(t *testing.T) {
		b := fresh(t)
		one := Subscribe(t, b, "c1", broker.Start{}, "", "**")
		two := Subscribe(t, b, "c2", broker.Start{}, "", "**")
		Publish(t, b, Event("1"), Event("2"))
		for _, c := range []broker.Consumer{one, two} {
			for _, d := range Take(t, c, 2) {
				require.NoError(t, d.Ack())
			}
		}
	})

	t.Run("only what is selected arrives", func(t *testing.T) {
		b := fresh(t)
		c, err := b.Subscribe(t.Context(), broker.ConsumerSpec{Name: "c1", Selectors: []broker.Selector{
			{Source: "commerce", Type: "order.*.v1"},
			{Source: "commerce", Type: "*.created.v1"}, // overlaps the first
			{Owner: "shop", Type: "invoice.**"},
		}})
		require.NoError(t, err)
		events := []event.Event{
			{ID: "1", Source: "commerce", Type: "order.created.v1"},
			{ID: "2", Source: "commerce", Type: "order.paid.v1"},
			{ID: "3", Source: "erp", Type: "order.created.v1"},
			{ID: "4", Source: "/shop/billing", Type: "invoice.sent.late.v1"},
			{ID: "5", Source: "/other/billing", Type: "invoice.sent.v1"},
			{ID: "6", Source: "/shop/billing", Type: "invoice"},
			{ID: "7", Source: "commerce", Type: "customer.created.v1"},
		}
		Publish(t, b, events...)
		for i, d := range Take(t, c, 4) {
			require.Equal(t, []string{"1", "2", "4", "7"}[i], d.Event().ID)
		}
		Nothing(t, c)
	})

	t.Run("a delivery that asks for a retry comes again after the delay, counted", func(t *testing.T) {
		b := fresh(t)
		c := Subscribe(t, b, "c1", broker.Start{}, "", "**")
		Publish(t, b, Event("1"))
		d := Take(t, c, 1)[0]
		const delay = 300 * time.Millisecond
		begin := time.Now()
		require.NoError(t, d.Retry(delay))
		Publish(t, b, Event("2")) // does not wait behind the first
		healthy := Take(t, c, 1)[0]
		require.Equal(t, "2", healthy.Event().ID)
		require.NoError(t, healthy.Ack())
		again := Take(t, c, 1)[0]
		require.GreaterOrEqual(t, time.Since(begin), delay-10*time.Millisecond)
		require.Equal(t, "1", again.Event().ID)
		require.Equal(t, 2, again.Attempt())
		require.NoError(t, again.Retry(0))
		require.Equal(t, 3, Take(t, c, 1)[0].Attempt())
	})

	t.Run("a delivery that is recalled comes again before its delay is over, and not when it has its end", func(t *testing.T) {
		b := fresh(t)
		c := Subscribe(t, b, "c1", broker.Start{}, "", "**")
		Publish(t, b, Event("1"))
		d := Take(t, c, 1)[0]
		recall := d.Recall()
		require.NoError(t, d.Retry(time.Hour))
		require.NoError(t, recall())
		again := Take(t, c, 1)[0]
		require.Equal(t, "1", again.Event().ID)
		require.Equal(t, 2, again.Attempt())
		require.NoError(t, again.Ack())
		require.NoError(t, recall())
		Nothing(t, c)
	})

	t.Run("an unanswered delivery comes again, an extended one does not", func(t *testing.T) {
		// As long as the one that extends may be kept from running.
		b, _ := open(t, Options{Dir: t.TempDir(), AckWait: 5 * time.Second})
		c := Subscribe(t, b, "c1", broker.Start{}, "", "**")
		Publish(t, b, Event("silent"), Event("extended"))
		held := Take(t, c, 2)[1]
		stop := make(chan struct{})
		var extender sync.WaitGroup
		extender.Go(func() {
			tick := time.NewTicker(200 * time.Millisecond)
			defer tick.Stop()
			for {
				select {
				case <-tick.C:
					_ = held.Extend()
				case <-stop:
					return
				}
			}
		})
		again := Take(t, c, 1)[0]
		require.Equal(t, "silent", again.Event().ID)
		require.NoError(t, again.Ack())
		Nothing(t, c)
		close(stop)
		extender.Wait()
		require.NoError(t, held.Ack())
	})

	t.Run("an edit keeps the position", func(t *testing.T) {
		b := fresh(t)
		c := Subscribe(t, b, "c1", broker.Start{}, "/shop/cart", "a")
		a1, a2, b1 := Event("a1"), Event("a2"), Event("b1")
		a1.Type, a2.Type, b1.Type = "a", "a", "b"
		Publish(t, b, a1, a2)
		require.NoError(t, Take(t, c, 1)[0].Ack())
		edited, err := b.Subscribe(t.Context(), broker.ConsumerSpec{
			Name: "c1", Start: broker.Start{Earliest: true},
			Selectors: []broker.Selector{{Source: "/shop/cart", Type: "a"}, {Source: "/shop/cart", Type: "b"}},
		})
		require.NoError(t, err)
		Publish(t, b, b1)
		got := Take(t, edited, 2)
		require.Equal(t, []string{"a2", "b1"}, []string{got[0].Event().ID, got[1].Event().ID})
	})

	t.Run("a new consumer begins where it says", func(t *testing.T) {
		b := fresh(t)
		before := Publish(t, b, Event("1"), Event("2"))
		all := Subscribe(t, b, "all", broker.Start{Earliest: true}, "", "**")
		fromNew := Subscribe(t, b, "new", broker.Start{}, "", "**")
		fromSequence := Subscribe(t, b, "sequence", broker.Start{Sequence: before[1].Sequence}, "", "**")
		between := Take(t, all, 2)[1].Stored().Add(time.Nanosecond)
		fromTime := Subscribe(t, b, "time", broker.Start{Time: between}, "", "**")
		Publish(t, b, Event("3"))
		require.Equal(t, "2", Take(t, fromSequence, 2)[0].Event().ID)
		require.Equal(t, "3", Take(t, fromNew, 1)[0].Event().ID)
		require.Equal(t, "3", Take(t, fromTime, 1)[0].Event().ID)
	})

	t.Run("deleting a consumer deletes its backlog and nothing else", func(t *testing.T) {
		b := fresh(t)
		gone := Subscribe(t, b, "gone", broker.Start{}, "", "**")
		stays := Subscribe(t, b, "stays", broker.Start{}, "", "**")
		Publish(t, b, Event("1"))
		Take(t, gone, 1)
		require.NoError(t, b.Unsubscribe(t.Context(), "gone"))
		require.NoError(t, b.Unsubscribe(t.Context(), "gone"), "deleting twice is no error")
		require.Len(t, Take(t, stays, 1), 1)
		gone = Subscribe(t, b, "gone", broker.Start{}, "", "**")
		Nothing(t, gone)
	})

	guaranteed(AttemptsOutliveRestart, func(t *testing.T) {
		options := Options{Dir: t.TempDir(), AckWait: time.Second}
		b, stop := open(t, options)
		c := Subscribe(t, b, "c1", broker.Start{}, "", "**")
		Publish(t, b, Event("1"))
		require.Equal(t, 1, Take(t, c, 1)[0].Attempt())
		stop()
		b, _ = open(t, options)
		require.Equal(t, 2, Take(t, Subscribe(t, b, "c1", broker.Start{}, "", "**"), 1)[0].Attempt())
	})

	guaranteed(RefusesWhenFull, func(t *testing.T) {
		b, _ := open(t, Options{Dir: t.TempDir(), MaxBytes: 256 << 10})
		c := Subscribe(t, b, "c1", broker.Start{}, "", "**")
		accepted := 0
		var refusal error
		for i := 0; i < 100 && refusal == nil; i++ {
			e := Event(fmt.Sprint(i))
			e.Data = make([]byte, 16<<10)
			_, refusal = b.Publish(t.Context(), []event.Event{e})
			if refusal == nil {
				accepted++
			}
		}
		require.ErrorIs(t, refusal, broker.ErrFull)
		var many []event.Event
		for i := range 20 {
			e := Event(fmt.Sprint("many", i))
			e.Data = make([]byte, 16<<10)
			many = append(many, e)
		}
		_, err := b.Publish(t.Context(), many)
		require.ErrorIs(t, err, broker.ErrFull)
		require.Positive(t, accepted)
		require.GreaterOrEqual(t, len(Take(t, c, accepted)), accepted)
	})

	t.Run("what waits can be counted", func(t *testing.T) {
		b := fresh(t)
		c := Subscribe(t, b, "c1", broker.Start{}, "", "**")
		Publish(t, b, Event("1"), Event("2"), Event("3"))
		require.Eventually(t, func() bool { return waiting(t, c) == broker.ConsumerInfo{Pending: 3} }, deadline, 10*time.Millisecond)
		d := Take(t, c, 1)[0]
		require.Equal(t, broker.ConsumerInfo{Pending: 2, Unacknowledged: 1}, waiting(t, c))
		require.NoError(t, d.Ack())
		require.Eventually(t, func() bool { return waiting(t, c) == broker.ConsumerInfo{Pending: 2} }, deadline, 10*time.Millisecond)
	})

	t.Run("dead letters are kept with their reason", func(t *testing.T) {
		options := Options{Dir: t.TempDir()}
		b, stop := open(t, options)
		letter := broker.DeadLetter{
			Subscription: "shop/sub", Consumer: "c1", Sequence: 7, Stored: time.Now().UTC().Round(0), Reason: broker.ReasonAttemptsExhausted,
			Attempts: 3, LastStatus: 500, LastError: "500 Internal Server Error: \"bäd\"\n", Event: Event("1"),
		}
		require.NoError(t, b.StoreDeadLetter(t.Context(), &letter))
		require.NoError(t, b.StoreDeadLetter(t.Context(), &letter), "storing it again is no error")
		other := letter
		other.Consumer = "c2"
		require.NoError(t, b.StoreDeadLetter(t.Context(), &other))
		stop()
		b, _ = open(t, options)
		got, err := b.DeadLetters(t.Context(), "c1", 0, 10)
		require.NoError(t, err)
		require.Len(t, got, 1)
		require.WithinDuration(t, time.Now(), got[0].Died, time.Minute)
		letter.ID, letter.Died = got[0].ID, got[0].Died
		require.Empty(t, cmp.Diff(letter, got[0]))
		all, err := b.DeadLetters(t.Context(), "", 0, 10)
		require.NoError(t, err)
		require.Len(t, all, 2)
		rest, err := b.DeadLetters(t.Context(), "", all[0].ID, 10)
		require.NoError(t, err)
		require.Len(t, rest, 1)
	})

	t.Run("a list of large dead letters comes in parts", func(t *testing.T) {
		b := fresh(t)
		const n = 12
		for i := range uint64(n) {
			letter := broker.DeadLetter{Consumer: "c1", Sequence: i + 1, Event: Event(fmt.Sprint(i))}
			letter.Event.Data = make([]byte, event.MaxEventBytes)
			require.NoError(t, b.StoreDeadLetter(t.Context(), &letter))
		}
		var got []broker.DeadLetter
		for after := uint64(0); ; after = got[len(got)-1].ID {
			part, err := b.DeadLetters(t.Context(), "", after, 1000)
			require.NoError(t, err)
			require.LessOrEqual(t, len(part), n/2)
			if len(part) == 0 {
				break
			}
			got = append(got, part...)
		}
		require.Len(t, got, n)
	})
}
