package connector

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/config"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/lambdamesh/lambdamesh/connector/controller"
	"github.com/lambdamesh/lambdamesh/connector/outbound"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/component"
	"github.com/lambdamesh/lambdamesh/pkg/httpserver"
	"github.com/lambdamesh/lambdamesh/pkg/kube"
	"github.com/lambdamesh/lambdamesh/pkg/targets"
	"github.com/lambdamesh/lambdamesh/pkg/telemetry"
)

// publicReadTimeout is how long a third-party system may take to send a request.
const publicReadTimeout = 10 * time.Second

// Config of a connector. See [Config.Validate] for what is required.
type Config struct {
	// REST is how to reach the API server.
	REST *rest.Config
	// Outbound is the listener of the outbound gateway. Nothing but the sidecar
	// may reach it: it believes what the request says about the caller.
	Outbound net.Listener
	// Public is the listener for third-party systems.
	Public net.Listener
	// Admin is the listener of /healthz, /readyz and /metrics; nil: not served.
	Admin net.Listener
	// Targets that may be called.
	Targets *targets.Policy
	// MeshProxyURL is the HTTP proxy listener of the connector's sidecar, through
	// which it calls targets that are Services of the cluster. Empty where the
	// sidecar captures the traffic: then they are dialed as all others are.
	MeshProxyURL string
	// TrustDomain of the callers' identities; default [v1alpha1.DefaultTrustDomain].
	TrustDomain string
	// LeaderElection lets one of several connectors write statuses. All serve.
	LeaderElection bool
	// MaxConnections bounds the connections on Outbound and on Public each, see
	// [httpserver.Config]. No address has a share of its own: on both all come from
	// the sidecar. Default [httpserver.DefaultMaxConns].
	MaxConnections int
	// Log, default none.
	Log *slog.Logger
	// Registry that /metrics shows; default one of the connector's own.
	Registry *prometheus.Registry
}

// Validate returns all that is missing or wrong.
func (c Config) Validate() error {
	var errs []error
	for name, missing := range map[string]bool{
		"REST": c.REST == nil, "Outbound": c.Outbound == nil, "Public": c.Public == nil, "Targets": c.Targets == nil,
	} {
		if missing {
			errs = append(errs, fmt.Errorf("connector: %s is required", name))
		}
	}
	if c.MaxConnections < 0 {
		errs = append(errs, fmt.Errorf("connector: max connections %d: must be at least 1", c.MaxConnections))
	}
	if c.MeshProxyURL != "" {
		if _, err := c.meshProxy(); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (c Config) meshProxy() (*url.URL, error) {
	u, err := url.Parse(c.MeshProxyURL)
	if err != nil || u.Scheme != "http" || u.Host == "" {
		return nil, fmt.Errorf("connector: mesh proxy URL %q must be like http://127.0.0.1:15001", c.MeshProxyURL)
	}
	return u, nil
}

// callable is the policy for targets of applications. The system's own Services
// are none: they trust the connector, and a lambda could speak to them in its
// name.
func (c Config) callable() (*targets.Policy, error) {
	system := "*." + v1alpha1.SystemNamespace
	policy, err := c.Targets.Without(system, system+".svc", system+".svc.cluster.local")
	if err != nil || c.MeshProxyURL == "" {
		return policy, err
	}
	proxy, err := c.meshProxy()
	if err != nil {
		return nil, err
	}
	return policy.WithServiceProxy(proxy), nil
}

func (c Config) withDefaults() Config {
	if c.TrustDomain == "" {
		c.TrustDomain = v1alpha1.DefaultTrustDomain
	}
	if c.MaxConnections == 0 {
		c.MaxConnections = httpserver.DefaultMaxConns()
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Registry == nil {
		c.Registry = telemetry.Registry()
	}
	return c
}

// New makes a connector. It takes over the listeners: what runs closes them.
func New(c Config) (component.Component, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	c = c.withDefaults()
	var err error
	if c.Targets, err = c.callable(); err != nil {
		return nil, err
	}
	mgr, err := newManager(c)
	if err != nil {
		return nil, err
	}
	gateway, err := outbound.New(outbound.Config{
		Objects: mgr.GetClient(), Targets: c.Targets, TrustDomain: c.TrustDomain, Log: c.Log, Registry: c.Registry,
	})
	if err != nil {
		return nil, err
	}
	objects := component.New("connector controllers", func(ctx context.Context, ready func()) error {
		go func() {
			if mgr.GetCache().WaitForCacheSync(ctx) {
				ready()
			}
		}()
		return mgr.Start(ctx)
	})
	connections := httpserver.NewMetrics(c.Registry)
	server := func(name string, listener net.Listener, handler http.Handler) httpserver.Config {
		return httpserver.Config{
			Name: name, Listener: listener, Handler: handler, Log: c.Log, MaxConns: c.MaxConnections, Metrics: connections,
		}
	}
	var parts []component.Component
	if c.Admin != nil {
		parts = append(parts, httpserver.New(server("connector-admin", c.Admin, admin(objects, c.Registry)).Administrative()))
	}
	outside := server("connector-public", c.Public, public())
	outside.ReadTimeout = publicReadTimeout
	// The gateway serves when the caches are full: an empty one refuses everybody.
	parts = append(parts, objects, httpserver.New(server("connector-outbound", c.Outbound, gateway)), httpserver.New(outside))
	return component.NewGroup("connector", component.GroupConfig{}, parts...), nil
}

// newManager makes the manager and its cache of what the gateway reads.
func newManager(c Config) (ctrl.Manager, error) {
	scheme, err := kube.Scheme()
	if err != nil {
		return nil, err
	}
	stopWithin := 10 * time.Second // the group's limit is higher
	skip := true                   // two connectors may live in one process, each with these names
	mgr, err := ctrl.NewManager(c.REST, ctrl.Options{
		Scheme:                  scheme,
		Logger:                  telemetry.Logr(c.Log),
		Metrics:                 metricsserver.Options{BindAddress: "0"},
		Controller:              config.Controller{SkipNameValidation: &skip},
		GracefulShutdownTimeout: &stopWithin,
		LeaderElection:          c.LeaderElection,
		LeaderElectionID:        "connector." + v1alpha1.Group,
		LeaderElectionNamespace: v1alpha1.SystemNamespace,
		Cache: cache.Options{ByObject: map[client.Object]cache.ByObject{
			// Credentials are not the tenants', so neither are their Secrets.
			&corev1.Secret{}: {Namespaces: map[string]cache.Config{v1alpha1.SystemNamespace: {}}},
		}},
	})
	if err != nil {
		return nil, fmt.Errorf("connector: making the controllers: %w", err)
	}
	if err := controller.Setup(mgr, c.Targets); err != nil {
		return nil, fmt.Errorf("connector: making the controllers: %w", err)
	}
	// The gateway reads these from the start, also where another connector is the
	// leader and no controller watches them here.
	lambdas := &metav1.PartialObjectMetadata{}
	lambdas.SetGroupVersionKind(v1alpha1.GroupVersion().WithKind("Lambda"))
	for _, kind := range []client.Object{&v1alpha1.Application{}, &v1alpha1.ApplicationBinding{}, &corev1.Secret{}, lambdas} {
		if _, err := mgr.GetCache().GetInformer(context.Background(), kind, cache.BlockUntilSynced(false)); err != nil {
			return nil, fmt.Errorf("connector: watching %T: %w", kind, err)
		}
	}
	return mgr, nil
}

func admin(objects component.Component, registry *prometheus.Registry) http.Handler {
	mux := httpserver.Health(func(context.Context) error {
		select {
		case <-objects.Ready():
			return nil
		default:
			return errors.New("the connector has not read the API server's objects yet")
		}
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("/", httpserver.NotFound)
	return mux
}

// public is what third-party systems reach. It comes up after everything else
// and so is ready as long as it answers.
func public() http.Handler {
	mux := httpserver.Health(func(context.Context) error { return nil })
	mux.HandleFunc("/", httpserver.NotFound)
	return mux
}
