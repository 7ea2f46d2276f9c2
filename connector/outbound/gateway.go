package outbound

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/httpserver"
	"github.com/lambdamesh/lambdamesh/pkg/targets"
)

// Config of a [Gateway]. All but Log and Registry are required.
type Config struct {
	// Objects reads Applications, ApplicationBindings, the metadata of Lambdas
	// and the Secrets of the system namespace, out of a cache: every call reads.
	Objects client.Reader
	// Targets that may be called.
	Targets *targets.Policy
	// TrustDomain of the callers' identities.
	TrustDomain string
	// Log of calls that failed, and at debug level of all. Default none.
	Log *slog.Logger
	// Registry for metrics. Default none.
	Registry prometheus.Registerer
}

// Gateway is the http.Handler of the outbound calls.
type Gateway struct {
	objects     client.Reader
	targets     *targets.Policy
	trustDomain string
	log         *slog.Logger
	metrics     metrics
	transports  *transports
	tokens      *tokens
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
	}
	if g.log == nil {
		g.log = slog.New(slog.DiscardHandler)
	}
	if config.Registry != nil {
		if err := g.metrics.register(config.Registry); err != nil {
			return nil, fmt.Errorf("registering the metrics of the outbound gateway: %w", err)
		}
	}
	g.tokens = newTokens(config.Targets.Transport(targets.ClientOptions{}))
	return g, nil
}

// refusal is an answer of the gateway itself.
type refusal struct {
	status        int
	title, detail string
}

// Error implements error.
func (r *refusal) Error() string { return r.detail }

func refuse(status int, title, format string, args ...any) error {
	return &refusal{status: status, title: title, detail: fmt.Sprintf(format, args...)}
}

// caller is a workload: a lambda's service account has the lambda's name.
type caller struct{ namespace, name string }

// ServeHTTP lets a bound caller's request through to the API.
func (g *Gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	application, service, path := splitPath(r.URL.EscapedPath())
	endpoint, err := g.admit(r, application, service)
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

// admit returns the endpoint when the caller may call it.
func (g *Gateway) admit(r *http.Request, application, service string) (*Endpoint, error) {
	if r.Method == http.MethodConnect || r.Method == http.MethodTrace {
		return nil, refuse(http.StatusMethodNotAllowed, "Method not allowed", "%s is not passed on", r.Method)
	}
	id, ok := httpserver.ClientIdentity(r)
	if !ok {
		return nil, refuse(http.StatusForbidden, "Unknown caller", "the request carries no identity: call through the mesh")
	}
	var who caller
	if who.namespace, who.name, ok = httpserver.Workload(g.trustDomain, id); !ok {
		return nil, refuse(http.StatusForbidden, "Unknown caller", "%s is no workload of the trust domain %s", id, g.trustDomain)
	}
	app, err := g.application(r.Context(), application)
	if err != nil {
		return nil, err
	}
	if err := g.authorize(r.Context(), who, application, service); err != nil {
		return nil, err
	}
	i := slices.IndexFunc(app.Spec.Services, func(s v1alpha1.ApplicationService) bool { return s.Name == service })
	if i < 0 || app.Spec.Services[i].API == nil {
		return nil, refuse(http.StatusNotFound, "Unknown service", "the application %s has no API %q", application, service)
	}
	endpoint, err := Resolve(app.Spec.Services[i].API, g.secrets(r.Context()), g.targets)
	var unusable *UnusableError
	if errors.As(err, &unusable) {
		return nil, refuse(http.StatusServiceUnavailable, "Service not usable",
			"%s/%s cannot be called: %s: %s", application, service, unusable.Reason, unusable.Message)
	}
	return endpoint, err
}

func (g *Gateway) application(ctx context.Context, name string) (*v1alpha1.Application, error) {
	var app v1alpha1.Application
	err := g.objects.Get(ctx, client.ObjectKey{Name: name}, &app)
	if name == "" || apierrors.IsNotFound(err) {
		return nil, refuse(http.StatusNotFound, "Unknown application",
			"there is no application %q: call /<application>/<service>/<path>", name)
	}
	if err != nil {
		return nil, fmt.Errorf("reading Application %s: %w", name, err)
	}
	return &app, nil
}

func (g *Gateway) secrets(ctx context.Context) SecretFunc {
	return func(name string) (*corev1.Secret, error) {
		var secret corev1.Secret
		err := g.objects.Get(ctx, client.ObjectKey{Namespace: v1alpha1.SystemNamespace, Name: name}, &secret)
		return &secret, err
	}
}

// authorize looks for an ApplicationBinding in the caller's namespace that binds
// the caller to the service.
func (g *Gateway) authorize(ctx context.Context, who caller, application, service string) error {
	var bindings v1alpha1.ApplicationBindingList
	if err := g.objects.List(ctx, &bindings, client.InNamespace(who.namespace)); err != nil {
		return fmt.Errorf("listing ApplicationBindings of %s: %w", who.namespace, err)
	}
	for i := range bindings.Items {
		binding := &bindings.Items[i]
		if binding.Spec.Application != application || binding.Spec.Lambdas == nil || !binding.DeletionTimestamp.IsZero() ||
			len(binding.Spec.Services) > 0 && !slices.Contains(binding.Spec.Services, service) {
			continue
		}
		picked, err := g.picks(ctx, binding.Spec.Lambdas, who)
		if err != nil {
			return err
		}
		if picked {
			return nil
		}
	}
	return refuse(http.StatusForbidden, "Not bound",
		"the lambda %[1]s/%[2]s is not bound to %[3]s/%[4]s: an ApplicationBinding in the namespace %[1]s has to name both",
		who.namespace, who.name, application, service)
}

// picks reports whether the selection holds the caller, by name or by the labels
// of the lambda of that name. A selector that cannot be read picks nobody.
func (g *Gateway) picks(ctx context.Context, selection *v1alpha1.LambdaSelection, who caller) (bool, error) {
	if slices.Contains(selection.Names, who.name) {
		return true, nil
	}
	if selection.Selector == nil {
		return false, nil
	}
	selector, err := metav1.LabelSelectorAsSelector(selection.Selector)
	if err != nil {
		return false, nil //nolint:nilerr // the binding's status says so
	}
	lambda := &metav1.PartialObjectMetadata{}
	lambda.SetGroupVersionKind(v1alpha1.GroupVersion().WithKind("Lambda"))
	err = g.objects.Get(ctx, client.ObjectKey{Namespace: who.namespace, Name: who.name}, lambda)
	if apierrors.IsNotFound(err) {
		return false, nil // a selector picks lambdas, not whoever has labels
	}
	if err != nil {
		return false, fmt.Errorf("reading Lambda %s/%s: %w", who.namespace, who.name, err)
	}
	return selector.Matches(labels.Set(lambda.Labels)), nil
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
	httpserver.Problem(w, refused.status, refused.title, refused.detail)
}

// metrics of the gateway. Applications and services are labels only after they
// were found to exist.
type metrics struct {
	calls   *prometheus.HistogramVec
	refused *prometheus.CounterVec
	tokens  *prometheus.CounterVec
}

func newMetrics() metrics {
	return metrics{
		calls: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "lambdamesh_connector_outbound_duration_seconds",
			Help:    "Time from a call to the headers of its answer, by application, service and the target's status (0: none).",
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 9),
		}, []string{"application", "service", "status"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "lambdamesh_connector_outbound_refused_total",
			Help: "Calls that the gateway answered itself, by status.",
		}, []string{"status"}),
		tokens: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "lambdamesh_connector_token_refused_total",
			Help: "Tokens that a target refused, by application and service.",
		}, []string{"application", "service"}),
	}
}

func (m metrics) register(registry prometheus.Registerer) error {
	return errors.Join(registry.Register(m.calls), registry.Register(m.refused), registry.Register(m.tokens))
}
