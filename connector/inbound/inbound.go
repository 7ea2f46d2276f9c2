package inbound

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/lambdamesh/lambdamesh/connector/public"
	"github.com/lambdamesh/lambdamesh/pkg/apis/headers"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

const (
	// What the event bus takes: data of 1 MiB, more in the JSON format, which may
	// escape it, and batches. It is asked here, too: who is refused in the middle of
	// a body may not see the answer.
	maxData       = 1 << 20
	maxStructured = 2*maxData + 64<<10
	maxBatch      = 16 * maxData
	// timeout of a request: longer than the bus takes to read and to store.
	timeout = 60 * time.Second
	// maxAtOnce of an application, so that one leaves room in the bus for others.
	maxAtOnce = 128
	// buffer that a body or an answer is copied by.
	buffer = 32 << 10
	// retryAfter is when who is told to come again should, in seconds.
	retryAfter = "2"
)

// DefaultBusURL is the event bus of the installation, as members of the mesh reach
// it.
const DefaultBusURL = "http://" + v1alpha1.ServiceEventBus + "." + v1alpha1.SystemNamespace + ".svc"

// Config of a [Gateway].
type Config struct {
	// BusURL of the event bus; default [DefaultBusURL].
	BusURL *url.URL
	// MeshProxy is the HTTP proxy of the sidecar; nil where it captures traffic.
	MeshProxy *url.URL
	// Log of requests that did not reach the bus; default none.
	Log *slog.Logger
	// Registry of the metrics. Required.
	Registry prometheus.Registerer
}

// Gateway implements [public.Events].
type Gateway struct {
	bus       *url.URL
	transport http.RoundTripper
	proxy     *httputil.ReverseProxy
	log       *slog.Logger
	requests  *prometheus.CounterVec
	activity  activity

	mu     sync.Mutex
	atOnce map[string]int // requests of applications
}

// New makes a gateway.
func New(config Config) (*Gateway, error) {
	if config.BusURL == nil {
		var err error
		if config.BusURL, err = url.Parse(DefaultBusURL); err != nil {
			return nil, fmt.Errorf("inbound: %w", err)
		}
	}
	if config.Log == nil {
		config.Log = slog.New(slog.DiscardHandler)
	}
	g := &Gateway{
		bus: config.BusURL, log: config.Log, atOnce: map[string]int{}, activity: activity{of: map[string]Activity{}},
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "lambdamesh_connector_inbound_requests_total", Help: "Requests of paired systems to publish or to ask what is subscribed, by application and answer.",
		}, []string{"application", "code"}),
	}
	if err := config.Registry.Register(g.requests); err != nil {
		return nil, fmt.Errorf("inbound: %w", err)
	}
	transport := &http.Transport{
		DialContext:         (&net.Dialer{Timeout: 5 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		MaxIdleConnsPerHost: 2 * maxAtOnce, IdleConnTimeout: 90 * time.Second, DisableCompression: true,
		ExpectContinueTimeout: time.Second, MaxResponseHeaderBytes: 64 << 10,
	}
	if config.MeshProxy != nil {
		transport.Proxy = http.ProxyURL(config.MeshProxy)
	}
	g.transport = transport
	g.proxy = &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { clean(r.Out.Header) },
		ModifyResponse: func(response *http.Response) error {
			clean(response.Header)
			return nil
		},
		Transport: transport, ErrorHandler: g.failed, BufferPool: &buffers{},
		ErrorLog: slog.NewLogLogger(config.Log.Handler(), slog.LevelDebug),
	}
	return g, nil
}

// clean removes what speaks of the mesh and not of the event, and what a request
// and its answer do not need.
func clean(header http.Header) {
	for name := range header {
		if headers.Identity(name) || strings.EqualFold(name, "forwarded") || headers.HasPrefix(name, "x-envoy-") || headers.HasPrefix(name, "x-forwarded-") {
			delete(header, name)
		}
	}
	for _, name := range []string{"Connection", "Upgrade", "Authorization", "Cookie", headers.DedupWindow} {
		header.Del(name)
	}
}

// Events implements [public.Events].
func (g *Gateway) Events(w http.ResponseWriter, r *http.Request, application, path string) {
	counted := &counter{ResponseWriter: w}
	defer func() {
		g.requests.WithLabelValues(application, strconv.Itoa(counted.status)).Inc()
		g.activity.noteAnswer(application, r.Method, counted.status)
	}()
	limit := limitOf(r)
	if r.ContentLength > limit {
		tooLarge(counted, limit)
		return
	}
	if !g.enter(application) {
		counted.Header().Set("Retry-After", retryAfter)
		public.Refuse(counted, http.StatusTooManyRequests, "more than %d requests of %s at once", maxAtOnce, application)
		return
	}
	defer g.leave(application)
	ctx, cancel := context.WithTimeout(r.Context(), timeout)
	defer cancel()
	r = r.WithContext(ctx)
	to := *g.bus
	to.Path = "/" + application + path
	r.URL = &to
	r.Host = g.bus.Host
	r.Body = http.MaxBytesReader(counted, r.Body, limit)
	g.proxy.ServeHTTP(counted, r)
}

// limitOf is how large the body of a request may be, in bytes.
func limitOf(r *http.Request) int64 {
	switch mediaType := strings.ToLower(r.Header.Get("Content-Type")); {
	case strings.HasPrefix(mediaType, "application/cloudevents-batch"):
		return maxBatch
	case strings.HasPrefix(mediaType, "application/cloudevents"):
		return maxStructured
	}
	return maxData
}

func tooLarge(w http.ResponseWriter, limit int64) {
	w.Header().Set("Connection", "close")
	public.Refuse(w, http.StatusRequestEntityTooLarge, "the body is larger than %d bytes", limit)
}

// failed answers when there is no answer of the bus.
func (g *Gateway) failed(w http.ResponseWriter, r *http.Request, err error) {
	if large, ok := errors.AsType[*http.MaxBytesError](err); ok {
		tooLarge(w, large.Limit)
		return
	}
	// To the bus there is no deadline but the request's.
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "read" && op.Timeout() && r.Context().Err() == nil {
		w.Header().Set("Connection", "close")
		public.Refuse(w, http.StatusRequestTimeout, "the body came too slowly")
		return
	}
	if r.Context().Err() == nil {
		g.log.Warn("an event did not reach the event bus", "path", r.URL.Path, "error", err)
	}
	w.Header().Set("Retry-After", retryAfter)
	public.Refuse(w, http.StatusServiceUnavailable, "the event bus cannot be reached: try again; an event that is sent twice with one id is stored once")
}

func (g *Gateway) enter(application string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.atOnce[application] >= maxAtOnce {
		return false
	}
	g.atOnce[application]++
	return true
}

func (g *Gateway) leave(application string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.atOnce[application]--; g.atOnce[application] == 0 {
		delete(g.atOnce, application)
	}
}

// buffers are used again.
type buffers struct{ pool sync.Pool }

// Get implements httputil.BufferPool.
func (b *buffers) Get() []byte {
	if p, ok := b.pool.Get().(*[]byte); ok {
		return *p
	}
	return make([]byte, buffer)
}

// Put implements httputil.BufferPool.
func (b *buffers) Put(p []byte) { b.pool.Put(&p) }

// counter knows the status of an answer.
type counter struct {
	http.ResponseWriter
	status int
}

// WriteHeader implements http.ResponseWriter.
func (c *counter) WriteHeader(status int) {
	if status >= http.StatusOK {
		c.status = status
	}
	c.ResponseWriter.WriteHeader(status)
}

// Unwrap is for http.ResponseController.
func (c *counter) Unwrap() http.ResponseWriter { return c.ResponseWriter }
