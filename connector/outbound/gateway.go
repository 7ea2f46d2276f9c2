package outbound

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"net/http/httputil"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/semaphore"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/pkg/accesstokens"
	"github.com/lambdamesh/lambdamesh/pkg/httpserver"
	"github.com/lambdamesh/lambdamesh/pkg/targets"
)

// Config of a [Gateway]. All but Log and Registry are required.
type Config struct {
	// Objects reads Applications, ApplicationServices, ApplicationBindings, the metadata of Lambdas
	// and the Secrets of the system namespace, out of a cache: every call reads. It has the
	// fields of connector/catalog.
	Objects client.Reader
	// Targets that may be called.
	Targets *targets.Policy
	// TrustDomain of the callers' identities.
	TrustDomain string
	// Log of calls that failed, and at debug level of all. Default none.
	Log *slog.Logger
	// Registry for metrics. Default none.
	Registry prometheus.Registerer
	// MaxCallsPerLambda that are under way at once; beyond it they are answered
	// 429. Default 64.
	MaxCallsPerLambda int
}

// flushInterval is how long a part of an answer whose length is known may wait for
// more of it. Most answers are here whole before that, and are written at once.
const flushInterval = 10 * time.Millisecond

// defaultCallsPerLambda is for who does not know how many connections there are.
const defaultCallsPerLambda = 64

// Gateway is the http.Handler of the outbound calls.
type Gateway struct {
	objects     client.Reader
	targets     *targets.Policy
	trustDomain string
	log         *slog.Logger
	metrics     metrics
	transports  *transports
	tokens      *accesstokens.Cache
	endpoints   *endpoints
	shares      *shares
	limits      *limits
	replays     *semaphore.Weighted
	activity    *activity
	proxy       httputil.ReverseProxy // what all calls have in common
}

// New makes a gateway.
func New(config Config) (*Gateway, error) {
	g := &Gateway{
		objects:     config.Objects,
		targets:     config.Targets,
		trustDomain: config.TrustDomain,
		log:         config.Log,
		metrics:     newMetrics(),
		transports:  newTransports(config.Targets),
		endpoints:   newEndpoints(),
		shares:      newShares(cmp.Or(config.MaxCallsPerLambda, defaultCallsPerLambda)),
		limits:      newLimits(),
		replays:     semaphore.NewWeighted(maxReplays),
		activity:    newActivity(),
	}
	if g.log == nil {
		g.log = slog.New(slog.DiscardHandler)
	}
	g.proxy = httputil.ReverseProxy{
		// Answers of unknown length are passed on as they come, whatever this says.
		FlushInterval: flushInterval, BufferPool: &buffers{}, ErrorLog: slog.NewLogLogger(g.log.Handler(), slog.LevelDebug),
	}
	if config.Registry != nil {
		if err := g.metrics.register(config.Registry); err != nil {
			return nil, fmt.Errorf("registering the metrics of the outbound gateway: %w", err)
		}
	}
	g.tokens = accesstokens.New()
	return g, nil
}

// refusal is an answer of the gateway itself.
type refusal struct {
	status        int
	title, detail string
	retryAfter    time.Duration // 0: none
}

// Error implements error.
func (r *refusal) Error() string { return r.detail }

func refuse(status int, title, format string, args ...any) error {
	return &refusal{status: status, title: title, detail: fmt.Sprintf(format, args...)}
}

func tooMany(wait time.Duration, format string, args ...any) error {
	return &refusal{
		status: http.StatusTooManyRequests, title: "Too many calls", detail: fmt.Sprintf(format, args...), retryAfter: wait,
	}
}

// caller is a workload: a lambda's service account has the lambda's name.
type caller struct{ namespace, name string }

// ServeHTTP lets a bound caller's request through to the API.
func (g *Gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	application, service, path := splitPath(r.URL.EscapedPath())
	who, err := g.identify(r)
	if err != nil {
		g.answer(w, r, err)
		return
	}
	if !g.shares.enter(who) {
		g.answer(w, r, tooMany(time.Second, "the lambda %s/%s has %d calls under way, its share of the connector",
			who.namespace, who.name, g.shares.each))
		return
	}
	defer g.shares.leave(who)
	endpoint, err := g.admit(r.Context(), who, application, service)
	if err != nil {
		g.answer(w, r, err)
		return
	}
	target, err := endpoint.url(path, r.URL.RawQuery)
	if err != nil {
		g.answer(w, r, refuse(http.StatusBadRequest, "Invalid path", "%v", err))
		return
	}
	call := &call{gateway: g, endpoint: endpoint, application: application, service: service, target: target}
	call.serve(w, r)
}

// splitPath takes /<application>/<service>/<path> apart. The path keeps its
// escapes and its first slash.
func splitPath(escaped string) (application, service, path string) {
	application, rest, _ := strings.Cut(strings.TrimPrefix(escaped, "/"), "/")
	service, path, found := strings.Cut(rest, "/")
	if found {
		path = "/" + path
	}
	return application, service, path
}

// identify returns who calls.
func (g *Gateway) identify(r *http.Request) (who caller, err error) {
	if r.Method == http.MethodConnect || r.Method == http.MethodTrace {
		return who, refuse(http.StatusMethodNotAllowed, "Method not allowed", "%s is not passed on", r.Method)
	}
	id, ok := httpserver.ClientIdentity(r)
	if !ok {
		return who, refuse(http.StatusForbidden, "Unknown caller", "the request carries no identity: call through the mesh")
	}
	if who.namespace, who.name, ok = httpserver.Workload(g.trustDomain, id); !ok {
		return who, refuse(http.StatusForbidden, "Unknown caller", "%s is no workload of the trust domain %s", id, g.trustDomain)
	}
	return who, nil
}

// admit returns the endpoint when the caller may call it now.
func (g *Gateway) admit(ctx context.Context, who caller, application, service string) (*Endpoint, error) {
	app, err := g.application(ctx, application)
	if err != nil {
		return nil, err
	}
	if err := g.authorize(ctx, who, application, service); err != nil {
		return nil, err
	}
	endpoint, err := g.endpoint(ctx, app, service)
	var unusable *UnusableError
	if errors.As(err, &unusable) {
		return nil, refuse(http.StatusServiceUnavailable, "Service not usable",
			"%s/%s cannot be called: %s: %s", application, service, unusable.Reason, unusable.Message)
	}
	if err != nil {
		return nil, err
	}
	if wait := g.limits.take(who, application, service, endpoint.rate); wait > 0 {
		return nil, tooMany(wait, "the lambda %s/%s calls %s/%s more often than the service allows", who.namespace, who.name, application, service)
	}
	if wait := endpoint.breaker.held(time.Now()); wait > 0 {
		return nil, &refusal{
			status: http.StatusServiceUnavailable, title: "Target held back", retryAfter: wait,
			detail: fmt.Sprintf("%s/%s did not answer several times in a row and is not called for a while", application, service),
		}
	}
	return endpoint, nil
}

// answer tells the caller why there is no call.
func (g *Gateway) answer(w http.ResponseWriter, r *http.Request, err error) {
	var refused *refusal
	if !errors.As(err, &refused) {
		g.log.Error("call failed", "error", err)
		refused = &refusal{status: http.StatusInternalServerError, title: "Internal error"}
	}
	g.log.Debug("call refused", "method", r.Method, "status", refused.status, "reason", refused.detail)
	g.metrics.refused.WithLabelValues(fmt.Sprint(refused.status)).Inc()
	if refused.retryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(refused.retryAfter.Seconds()))))
	}
	httpserver.Problem(w, refused.status, refused.title, refused.detail)
}
