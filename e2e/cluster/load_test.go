package cluster

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/http/httptrace"
	"slices"
	"sync"
	"testing"
	"time"
)

// each calls work again and again until ctx ends, at most once in an interval.
func each(ctx context.Context, interval time.Duration, work func(i int)) {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for i := 0; ctx.Err() == nil; i++ {
		<-ticker.C
		work(i)
	}
}

// caller asks a host of the gateway, and remembers how each request went.
type caller struct {
	c      *cluster
	host   string
	client *http.Client

	mu       sync.Mutex
	attempts []attempt
}

// attempt is one request: when it was sent, when its connection was made, and how
// it ended.
type attempt struct {
	sent, dialed time.Time
	took         time.Duration
	status       int
	body         string
	err          error
}

func (a attempt) String() string {
	return fmt.Sprintf("sent %s on a connection of %s, ended after %s: %d %s %v", a.sent.Format(time.StampMilli), a.dialed.Format(time.StampMilli), a.took, a.status, a.body, a.err)
}

func (c *cluster) newCaller(t *testing.T, at, host string) *caller {
	t.Helper()
	return &caller{c: c, host: host, client: &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{
		TLSClientConfig: c.trusting(""), MaxIdleConnsPerHost: 64,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			conn, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, network, at)
			if err != nil {
				return nil, err
			}
			return &dated{conn, time.Now()}, nil
		},
	}}}
}

// dated is a connection that knows since when it is there.
type dated struct {
	net.Conn
	since time.Time
}

func (r *caller) run(ctx context.Context) {
	each(ctx, pace, func(int) {
		a := attempt{sent: time.Now()}
		a.dialed = a.sent
		traced := httptrace.WithClientTrace(context.WithoutCancel(ctx), &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) {
			conn := info.Conn
			if inner, ok := conn.(*tls.Conn); ok {
				conn = inner.NetConn()
			}
			if known, ok := conn.(*dated); ok {
				a.dialed = known.since
			}
		}})
		req, err := http.NewRequestWithContext(traced, http.MethodGet, "https://"+r.host+"."+domain+"/", nil)
		if err == nil {
			var resp response
			resp, err = r.c.send(r.client, req)
			a.status, a.body = resp.status, resp.body
		}
		a.err, a.took = err, time.Since(a.sent)
		if a.err == nil && a.status == http.StatusOK {
			a.body = ""
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		r.attempts = append(r.attempts, a)
	})
}

// atLeast wants so many good ones that were sent after a time.
func (r *caller) atLeast(n int, after time.Time) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	good := 0
	for _, a := range r.attempts {
		if a.err == nil && a.status == http.StatusOK && a.sent.After(after) {
			good++
		}
	}
	if good < n {
		return fmt.Errorf("%d of %d good answers since %s", good, n, after.Format(time.TimeOnly))
	}
	return nil
}

func (r *caller) failed() []attempt {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(r.attempts), func(a attempt) bool { return a.err == nil && a.status == http.StatusOK })
}

func (r *caller) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	statuses, unanswered := map[int]int{}, 0
	for _, a := range r.attempts {
		if a.err != nil {
			unanswered++
		} else {
			statuses[a.status]++
		}
	}
	return fmt.Sprintf("%d by status %v, %d without an answer", len(r.attempts), statuses, unanswered)
}

// tally counts answers while load goes on.
type tally struct {
	mu       sync.Mutex
	ids      []string
	statuses map[int]int
	failed   int
	good     int // since mark
	gap      time.Duration
	last     time.Time
}

func newTally() *tally { return &tally{statuses: map[int]int{}, last: time.Now()} }

func (y *tally) note(id string, status, want int, err error) {
	y.mu.Lock()
	defer y.mu.Unlock()
	if err != nil {
		y.failed++
		return
	}
	y.statuses[status]++
	if status != want {
		return
	}
	y.ids, y.good = append(y.ids, id), y.good+1
	y.gap, y.last = max(y.gap, time.Since(y.last)), time.Now()
}

func (y *tally) mark() {
	y.mu.Lock()
	defer y.mu.Unlock()
	y.good = 0
}

func (y *tally) atLeast(n int) error {
	y.mu.Lock()
	defer y.mu.Unlock()
	if y.good < n {
		return fmt.Errorf("%d of %d: %v, %d failed", y.good, n, y.statuses, y.failed)
	}
	return nil
}

func (y *tally) accepted() []string {
	y.mu.Lock()
	defer y.mu.Unlock()
	return slices.Clone(y.ids)
}

func (y *tally) String() string {
	y.mu.Lock()
	defer y.mu.Unlock()
	return fmt.Sprintf("by status %v, %d without an answer; the longest time without a good one %s", y.statuses, y.failed, y.gap.Round(100*time.Millisecond))
}
