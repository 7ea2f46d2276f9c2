package ingress_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/eventbus/broker"
	"github.com/lambdamesh/lambdamesh/eventbus/event"
	"github.com/lambdamesh/lambdamesh/eventbus/ingress"
)

const mib = 1 << 20

// broker answers each event of the type "held" when it is told to, whatever
// becomes of the publisher.
type fakeBroker struct {
	store
	queued chan struct{}
	answer chan struct{}
}

func (b *fakeBroker) Publish(ctx context.Context, events []event.Event) ([]broker.Receipt, error) {
	if len(events) == 1 && events[0].Type == "held" {
		b.queued <- struct{}{}
		select {
		case <-b.answer:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return make([]broker.Receipt, len(events)), nil
}

type publisher struct {
	t   *testing.T
	url string
}

func serve(t *testing.T, p ingress.Publisher, bytes int64) *publisher {
	t.Helper()
	server := httptest.NewServer(ingress.New(ingress.Config{
		Publisher: p, Authorizer: ingress.Open{}, Budget: ingress.NewBudget(bytes), Log: slog.New(slog.DiscardHandler),
	}))
	t.Cleanup(server.Close)
	return &publisher{t: t, url: server.URL}
}

func (p *publisher) post(ctx context.Context, eventType, contentType string, body io.Reader) (*http.Response, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, p.url+"/publish", body)
	require.NoError(p.t, err)
	for name, value := range ce("Ce-Type", eventType, "Content-Type", contentType) {
		if strings.HasPrefix(contentType, "application/cloudevents") && strings.HasPrefix(name, "Ce-") {
			continue
		}
		r.Header.Set(name, value)
	}
	response, err := http.DefaultClient.Do(r)
	if err == nil {
		response.Body.Close()
	}
	return response, err
}

func (p *publisher) status(size int) int {
	p.t.Helper()
	response, err := p.post(p.t.Context(), "t", "application/json", strings.NewReader(strings.Repeat("1", size)))
	require.NoError(p.t, err)
	if response.StatusCode == http.StatusServiceUnavailable {
		require.Equal(p.t, "1", response.Header.Get("Retry-After"))
	}
	return response.StatusCode
}

// begin sends the head of a request and the beginning of its body.
func (p *publisher) begin(head, body string) net.Conn {
	p.t.Helper()
	conn, err := (&net.Dialer{}).DialContext(p.t.Context(), "tcp", strings.TrimPrefix(p.url, "http://"))
	require.NoError(p.t, err)
	p.t.Cleanup(func() { conn.Close() })
	_, err = io.WriteString(conn, "POST /publish HTTP/1.1\r\nHost: localhost\r\n"+head+"\r\n"+body)
	require.NoError(p.t, err)
	return conn
}

const (
	batchHead  = "Content-Type: application/cloudevents-batch+json\r\nTransfer-Encoding: chunked\r\n"
	binaryHead = "Content-Type: application/json\r\nCe-Specversion: 1.0\r\nCe-Id: 1\r\nCe-Source: s\r\nCe-Type: t\r\n"
)

// answer reads the status of what was begun.
func answer(t *testing.T, conn net.Conn) int {
	t.Helper()
	require.NoError(t, conn.SetReadDeadline(time.Now().Add(time.Minute)))
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	require.NoError(t, err)
	response.Body.Close()
	return response.StatusCode
}

func TestASlowPublisherHoldsOnlyWhatItHasSent(t *testing.T) {
	p := serve(t, &fakeBroker{}, 4*mib)
	for range 50 {
		p.begin(batchHead, "1\r\n[\r\n")
	}
	require.Equal(t, http.StatusAccepted, p.status(mib))
}

func TestABodyThatDoesNotComeIsGivenUp(t *testing.T) {
	t.Parallel() // it waits for seconds
	p := serve(t, &fakeBroker{}, 4*mib)
	for name, conn := range map[string]net.Conn{
		"nothing":   p.begin(batchHead, ""),
		"a bit":     p.begin(batchHead, "1\r\n[\r\n"),
		"half":      p.begin(binaryHead+"Content-Length: 1048576\r\n", strings.Repeat("1", mib/2)),
		"all but 1": p.begin(binaryHead+"Content-Length: 2\r\n", "1"),
	} {
		require.Equal(t, http.StatusRequestTimeout, answer(t, conn), name)
	}
	require.Equal(t, http.StatusAccepted, p.status(mib))
}

func TestStalledBodiesMakeRoom(t *testing.T) {
	t.Parallel()
	p := serve(t, &fakeBroker{}, 2*mib)
	begun := time.Now()
	var stalled []net.Conn
	for range 2 {
		stalled = append(stalled, p.begin(binaryHead+"Content-Length: 1048576\r\n", strings.Repeat("1", mib-mib/16)))
	}
	var statuses []int
	require.Eventually(t, func() bool {
		statuses = append(statuses, p.status(mib))
		return len(statuses) > 1 && statuses[len(statuses)-1] == http.StatusAccepted && time.Since(begun) > time.Second || time.Since(begun) > time.Minute
	}, time.Minute, 100*time.Millisecond)
	require.Equal(t, http.StatusAccepted, statuses[len(statuses)-1], statuses)
	// One that was given up anyway is told something else.
	require.Contains(t, []int{answer(t, stalled[0]), answer(t, stalled[1])}, http.StatusServiceUnavailable, "the one that began first made room")
}

func TestMemoryIsHeldUntilTheBrokerHasAnswered(t *testing.T) {
	for name, leave := range map[string]bool{"the publisher waits": false, "the publisher leaves": true} {
		t.Run(name, func(t *testing.T) {
			b := &fakeBroker{queued: make(chan struct{}), answer: make(chan struct{})}
			p := serve(t, b, 3*mib/2)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			done := make(chan error, 1)
			go func() {
				_, err := p.post(ctx, "held", "application/json", strings.NewReader(strings.Repeat("1", mib)))
				done <- err
			}()
			select {
			case <-b.queued:
			case err := <-done:
				t.Fatalf("it was answered before it was queued: %v", err)
			}
			if leave {
				cancel()
				require.ErrorIs(t, <-done, context.Canceled)
			}
			require.Equal(t, http.StatusAccepted, p.status(mib/4))
			for range 20 {
				require.Equal(t, http.StatusServiceUnavailable, p.status(mib))
			}
			b.answer <- struct{}{}
			if !leave {
				require.NoError(t, <-done)
			}
			require.Eventually(t, func() bool { return p.status(mib) == http.StatusAccepted }, time.Minute, 10*time.Millisecond)
		})
	}
}

// batch is a JSON batch of n events with this in it.
func batch(n int, members string) string {
	events := make([]string, n)
	for i := range events {
		events[i] = fmt.Sprintf(`{"specversion":"1.0","id":"%d","source":"s","type":"t"%s}`, i, members)
	}
	return "[" + strings.Join(events, ",") + "]"
}

func TestABatchCountsWhatItCosts(t *testing.T) {
	var small strings.Builder
	for i := range 64 {
		fmt.Fprintf(&small, `,"x%d":"1"`, i)
	}
	for name, tt := range map[string]struct {
		body   string
		budget int64
		status int
	}{
		"large events once, and one of them as it is parsed": {batch(15, `,"data":"`+strings.Repeat("1", mib-100)+`"`), 21 * mib, http.StatusAccepted},
		"not less":                                {batch(15, `,"data":"`+strings.Repeat("1", mib-100)+`"`), 15 * mib, http.StatusServiceUnavailable},
		"small attributes more than their bytes":  {batch(500, small.String()), mib, http.StatusServiceUnavailable},
		"and that much":                           {batch(500, small.String()), 6 * mib, http.StatusAccepted},
		"invalid ones nothing, and all are named": {batch(1000, `,"id":"2","data":"`+strings.Repeat("1", 10_000)+`"`), mib, http.StatusBadRequest},
		"an event too large for one":              {batch(1, `,"data":"`+strings.Repeat("1", 3*mib)+`"`), 100 * mib, http.StatusRequestEntityTooLarge},
		"more members than an event may have":     {batch(1, strings.Repeat(`,"y":1`, 1)+manyMembers(1000)), 100 * mib, http.StatusBadRequest},
		"more than one array":                     {batch(1, "") + "[]", 100 * mib, http.StatusBadRequest},
		"an array that does not end":              {"[" + strings.Trim(batch(1, ""), "[]"), 100 * mib, http.StatusBadRequest},
		"no comma":                                {"[{} {}]", 100 * mib, http.StatusBadRequest},
		"too many, whatever is wrong with each":   {"[" + strings.Repeat("1,", 1000) + "1]", 100 * mib, http.StatusBadRequest},
		"nothing":                                 {"", 100 * mib, http.StatusBadRequest},
	} {
		t.Run(name, func(t *testing.T) {
			p := serve(t, &fakeBroker{}, tt.budget)
			response, err := p.post(t.Context(), "t", "application/cloudevents-batch+json", strings.NewReader(tt.body))
			require.NoError(t, err)
			require.Equal(t, tt.status, response.StatusCode)
			require.Eventually(t, func() bool { return p.status(int(min(tt.budget, mib)/2)) == http.StatusAccepted }, time.Minute, 10*time.Millisecond, "everything is given back")
		})
	}
}

func manyMembers(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `,"a%d":1`, i)
	}
	return b.String()
}

// named lets everybody publish, by the name a header tells.
type named struct{}

func (named) Authorize(r *http.Request) (ingress.Caller, error) {
	return ingress.Caller{Name: r.Header.Get("Who"), Everything: true}, nil
}

func TestWhoHoldsTheMostMakesRoom(t *testing.T) {
	server := httptest.NewServer(ingress.New(ingress.Config{
		Publisher: &fakeBroker{}, Authorizer: named{}, Budget: ingress.NewBudget(4 * mib), Log: slog.New(slog.DiscardHandler),
	}))
	t.Cleanup(server.Close)
	p := &publisher{t: t, url: server.URL}
	half := strings.Repeat("1", mib/2)
	honest := p.begin(binaryHead+"Who: honest\r\nContent-Length: 1048576\r\n", half)
	for range 8 { // who begins anew all the time holds young bodies only
		p.begin(binaryHead+"Who: greedy\r\nContent-Length: 1048576\r\n", strings.Repeat("1", mib-mib/16))
	}
	_, err := io.WriteString(honest, half)
	require.NoError(t, err)
	require.Equal(t, http.StatusAccepted, answer(t, honest))
	for range 20 {
		require.Equal(t, http.StatusAccepted, p.status(mib/2), "a third caller")
	}
}

// A body that is here has nothing to read any more that could be interrupted: its
// publisher is not told to come again while the broker stores its event.
func TestABodyThatIsHereMakesNoRoom(t *testing.T) {
	b := &fakeBroker{queued: make(chan struct{}), answer: make(chan struct{})}
	server := httptest.NewServer(ingress.New(ingress.Config{
		Publisher: b, Authorizer: named{}, Budget: ingress.NewBudget(2 * mib), Log: slog.New(slog.DiscardHandler),
	}))
	t.Cleanup(server.Close)
	p := &publisher{t: t, url: server.URL}
	head := func(who, eventType string, size int) string {
		return fmt.Sprintf("Content-Type: application/json\r\nCe-Specversion: 1.0\r\nCe-Id: 1\r\nCe-Source: s\r\nCe-Type: %s\r\nWho: %s\r\nContent-Length: %d\r\n", eventType, who, size)
	}
	held := p.begin(head("first", "held", mib), strings.Repeat("1", mib))
	<-b.queued
	// It holds the most, and what it holds is in the broker's hands.
	for range 3 {
		refused := p.begin(head("second", "t", mib), strings.Repeat("1", mib))
		require.Equal(t, http.StatusServiceUnavailable, answer(t, refused), "there is no room until the broker has answered")
	}
	b.answer <- struct{}{}
	require.Equal(t, http.StatusAccepted, answer(t, held))
	require.Equal(t, http.StatusAccepted, answer(t, p.begin(head("second", "t", mib/2), strings.Repeat("1", mib/2))))
}

func TestHeadersCount(t *testing.T) {
	p := serve(t, &fakeBroker{}, mib)
	header := "Ce-X: " + strings.Repeat("x", 30<<10) + "\r\n"
	statuses := make(chan int, 40)
	for range cap(statuses) {
		conn := p.begin(binaryHead+header+"Content-Length: 10\r\n", "1")
		go func() {
			response, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err == nil {
				response.Body.Close()
				statuses <- response.StatusCode
			}
		}()
	}
	select {
	case status := <-statuses: // those with room get none before they are given up
		require.Equal(t, http.StatusServiceUnavailable, status)
	case <-time.After(time.Minute):
		t.Fatal("nobody is refused")
	}
}
