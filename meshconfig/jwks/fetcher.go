package jwks

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/lambdamesh/lambdamesh/meshconfig/jwk"
	"github.com/lambdamesh/lambdamesh/pkg/targets"
)

const (
	maxBytes     = 1 << 20
	maxRedirects = 3
	// parallel bounds the requests at a time, so that many slow issuers do not
	// take all sockets.
	parallel = 16
)

// Config of a [Fetcher].
type Config struct {
	// Policy says which addresses may be called. Required.
	Policy *targets.Policy
	// OnChange is called when Results tells something new. It must not block.
	// Optional.
	OnChange func()
	// Refresh is how long a set is good that says nothing about it; default 5
	// minutes. One that does (Cache-Control: max-age) is good for as long, but
	// for MinRefresh at least and MaxRefresh at most.
	Refresh time.Duration
	// MinRefresh is the shortest time between two requests for a URI, and the
	// first pause after a failure; default 5 seconds.
	MinRefresh time.Duration
	// MaxRefresh is the longest time a set is used without asking again, and
	// the longest pause after failures; default 1 hour.
	MaxRefresh time.Duration
	// Timeout of a request with its redirects; default 5 seconds.
	Timeout time.Duration
	// Log is where fetches that begin or cease to fail are told; default none.
	Log *slog.Logger
}

func (c *Config) setDefaults() {
	if c.OnChange == nil {
		c.OnChange = func() {}
	}
	setDefault(&c.Refresh, 5*time.Minute)
	setDefault(&c.MinRefresh, 5*time.Second)
	setDefault(&c.MaxRefresh, time.Hour)
	setDefault(&c.Timeout, 5*time.Second)
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
}

func setDefault(field *time.Duration, value time.Duration) {
	if *field <= 0 {
		*field = value
	}
}

// Result of fetching a URI. A set together with an error is the last good one.
type Result struct {
	// JSON of the set, with its usable keys only; empty when there is none.
	JSON string
	// Err tells people why the last fetch failed; empty when it did not.
	Err string
}

// Fetcher keeps key sets. It is a component: it fetches while Run runs.
type Fetcher struct {
	config Config
	client *http.Client
	places chan struct{}
	ready  chan struct{}

	mu      sync.Mutex
	launch  func(uri string, k *kept) // while Run runs; f.mu is held
	kept    map[string]*kept
	running sync.WaitGroup
}

type kept struct {
	cancel  context.CancelFunc // nil until it is fetched in the background
	tried   chan struct{}      // closed after the first try
	fetched bool
	result  Result
}

// New makes a Fetcher; it fetches from Run on.
func New(config Config) (*Fetcher, error) {
	if config.Policy == nil {
		return nil, errors.New("configure the key set fetcher: Policy is required")
	}
	config.setDefaults()
	return &Fetcher{
		config: config,
		client: &http.Client{
			Transport:     config.Policy.Transport(targets.ClientOptions{}),
			CheckRedirect: sameHost,
		},
		places: make(chan struct{}, parallel),
		ready:  make(chan struct{}),
		kept:   map[string]*kept{},
	}, nil
}

// sameHost keeps redirects on the scheme and host that the rule's author named.
func sameHost(r *http.Request, via []*http.Request) error {
	if len(via) > maxRedirects {
		return fmt.Errorf("stopped after %d redirects", maxRedirects)
	}
	if first := via[0].URL; r.URL.Scheme != first.Scheme || r.URL.Host != first.Host {
		return fmt.Errorf("it redirects to %s://%s; name the final URL instead", r.URL.Scheme, r.URL.Host)
	}
	return nil
}

// Name implements component.Component.
func (f *Fetcher) Name() string { return "jwks" }

// Ready implements component.Component.
func (f *Fetcher) Ready() <-chan struct{} { return f.ready }

// Run fetches until ctx ends.
func (f *Fetcher) Run(ctx context.Context) error {
	f.mu.Lock()
	f.launch = func(uri string, k *kept) {
		ctx, cancel := context.WithCancel(ctx)
		k.cancel = cancel
		f.running.Go(func() {
			defer cancel()
			f.keepFresh(ctx, uri, k)
		})
	}
	for uri, k := range f.kept {
		f.launch(uri, k)
	}
	f.mu.Unlock()
	close(f.ready)
	<-ctx.Done()
	f.mu.Lock()
	f.launch = nil
	f.mu.Unlock()
	f.running.Wait()
	f.client.CloseIdleConnections()
	return nil
}

// Keep says which URIs are named now. New ones are fetched at once, others are
// forgotten.
func (f *Fetcher) Keep(uris []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	named := make(map[string]bool, len(uris))
	for _, uri := range uris {
		named[uri] = true
		if f.kept[uri] == nil {
			k := &kept{tried: make(chan struct{})}
			f.kept[uri] = k
			if f.launch != nil {
				f.launch(uri, k)
			}
		}
	}
	for uri, k := range f.kept {
		if !named[uri] {
			if k.cancel != nil {
				k.cancel()
			}
			delete(f.kept, uri)
		}
	}
}

// Results of the URIs that were tried once at least.
func (f *Fetcher) Results() map[string]Result {
	f.mu.Lock()
	defer f.mu.Unlock()
	results := make(map[string]Result, len(f.kept))
	for uri, k := range f.kept {
		if k.fetched {
			results[uri] = k.result
		}
	}
	return results
}

// Settled waits until every URI that is named now was tried once, or ctx ends.
func (f *Fetcher) Settled(ctx context.Context) error {
	f.mu.Lock()
	waits := make([]chan struct{}, 0, len(f.kept))
	for _, k := range f.kept {
		waits = append(waits, k.tried)
	}
	f.mu.Unlock()
	for _, tried := range waits {
		select {
		case <-tried:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func (f *Fetcher) keepFresh(ctx context.Context, uri string, k *kept) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	pause := f.config.MinRefresh
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		set, fresh, err := f.fetch(ctx, uri)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			fresh, pause = pause, min(2*pause, f.config.MaxRefresh)
		} else {
			pause = f.config.MinRefresh
		}
		f.note(uri, k, set, err)
		timer.Reset(fresh)
	}
}

// note keeps what a fetch gave, and the last good set when it gave none.
func (f *Fetcher) note(uri string, k *kept, set string, err error) {
	next := Result{JSON: set}
	f.mu.Lock()
	before, first := k.result, !k.fetched
	if err != nil {
		next = Result{JSON: before.JSON, Err: err.Error()}
	}
	k.result, k.fetched = next, true
	f.mu.Unlock()
	if first {
		close(k.tried)
	}
	switch {
	case next.Err != "" && next.Err != before.Err:
		f.config.Log.Warn("cannot fetch a key set", "uri", uri, "error", next.Err, "kept", next.JSON != "")
	case next.Err == "" && before.Err != "":
		f.config.Log.Info("fetched a key set again", "uri", uri)
	}
	if first || next != before {
		f.config.OnChange()
	}
}

// fetch returns the usable keys at uri and how long they are good.
func (f *Fetcher) fetch(ctx context.Context, uri string) (set string, fresh time.Duration, err error) {
	select {
	case f.places <- struct{}{}:
		defer func() { <-f.places }()
	case <-ctx.Done():
		return "", 0, ctx.Err()
	}
	ctx, cancel := context.WithTimeout(ctx, f.config.Timeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, uri, http.NoBody)
	if err != nil {
		return "", 0, reason(err)
	}
	request.Header.Set("Accept", "application/json, application/jwk-set+json")
	response, err := f.client.Do(request)
	if err != nil {
		return "", 0, f.reason(ctx, err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return "", 0, fmt.Errorf("it answered %s", response.Status)
	}
	body, err := io.ReadAll(io.LimitReader(response.Body, maxBytes+1))
	switch {
	case err != nil:
		return "", 0, f.reason(ctx, err)
	case len(body) > maxBytes:
		return "", 0, fmt.Errorf("the answer is longer than %d bytes", maxBytes)
	}
	if set, err = jwk.Public(string(body)); err != nil {
		return "", 0, err
	}
	return set, f.freshness(response.Header), nil
}

// freshness is how long an answer is good (RFC 9111, section 5.2.2), bounded.
func (f *Fetcher) freshness(header http.Header) time.Duration {
	fresh := f.config.Refresh
	for directive := range strings.SplitSeq(header.Get("Cache-Control"), ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(directive), "=")
		switch strings.ToLower(name) {
		case "max-age":
			if seconds, err := strconv.ParseUint(strings.Trim(value, `"`), 10, 31); err == nil {
				fresh = time.Duration(seconds) * time.Second
			}
		case "no-store", "no-cache":
			return f.config.MinRefresh
		}
	}
	return min(max(fresh, f.config.MinRefresh), f.config.MaxRefresh)
}

// reason is an error without what the reader knows already: method and URL.
func reason(err error) error {
	var failed *url.Error
	if errors.As(err, &failed) {
		return failed.Err
	}
	return err
}

func (f *Fetcher) reason(ctx context.Context, err error) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return fmt.Errorf("no answer within %s", f.config.Timeout)
	}
	return reason(err)
}
