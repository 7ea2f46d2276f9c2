package connector

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/lambdamesh/lambdamesh/connector/controller"
	"github.com/lambdamesh/lambdamesh/connector/outbound"
	"github.com/lambdamesh/lambdamesh/connector/pairing"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/component"
	"github.com/lambdamesh/lambdamesh/pkg/httpserver"
	"github.com/lambdamesh/lambdamesh/pkg/targets"
	"github.com/lambdamesh/lambdamesh/pkg/telemetry"
)

// publicReadTimeout is how long a third-party system may take to send a request:
// as long as a publisher of the event bus.
const publicReadTimeout = 30 * time.Second

// shareOfLambda is the part of the outbound connections that one lambda may have.
const shareOfLambda = 8

// Config of a connector. See [Config.Validate] for what is required.
type Config struct {
	// REST is how to reach the API server.
	REST *rest.Config
	// Outbound is the listener of the outbound gateway. Nothing but the sidecar
	// may reach it: it believes what the request says about the caller.
	Outbound net.Listener
	// Public is the listener for third-party systems; nil: not served.
	Public net.Listener
	// Certificate with which Public is served.
	Certificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)
	// CertFile and KeyFile hold it, in the place of Certificate; they are read
	// again when they change.
	CertFile, KeyFile string
	// PublicURL is where third-party systems reach Public, such as
	// https://connector.example.com; default the Service of the system namespace.
	PublicURL string
	// Webhooks says under which names of Public third-party systems without client
	// certificates call webhooks.
	Webhooks Webhooks
	// RootsFile holds the certificates (PEM) that verify Public's, for those who
	// pair; Roots is what it holds. Neither: their own say whom they believe.
	RootsFile string
	Roots     []byte
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
	// [httpserver.Config]; on Public a client address has half of them at most.
	// Default [httpserver.DefaultMaxConns].
	MaxConnections int
	// MaxCallsPerLambda is how many calls of one lambda may be under way; default an
	// eighth of MaxConnections.
	MaxCallsPerLambda int
	// Log, default none.
	Log *slog.Logger
	// Registry that /metrics shows; default one of the connector's own.
	Registry *prometheus.Registry
}

// Webhooks of third-party systems come to the public port under names of their
// own.
type Webhooks struct {
	// Names of hosts; none: webhooks are not served.
	Names []string
	// Certificate with which they are served.
	Certificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)
	// CertFile and KeyFile hold it, in the place of Certificate; they are read again
	// when they change.
	CertFile, KeyFile string
	// Nameless serves them to clients that name no server, too; see
	// [public.WebhookConfig].
	Nameless bool
}

// Validate returns all that is missing or wrong.
func (c Config) Validate() error {
	var errs []error
	for name, missing := range map[string]bool{
		"REST": c.REST == nil, "Outbound": c.Outbound == nil, "Targets": c.Targets == nil,
	} {
		if missing {
			errs = append(errs, fmt.Errorf("connector: %s is required", name))
		}
	}
	if c.Public != nil && c.Certificate == nil && (c.CertFile == "" || c.KeyFile == "") {
		errs = append(errs, errors.New("connector: the public listener needs a certificate and its key"))
	}
	if w := c.Webhooks; len(w.Names) > 0 && (c.Public == nil || w.Certificate == nil && (w.CertFile == "" || w.KeyFile == "")) {
		errs = append(errs, errors.New("connector: webhooks need the public listener, and a certificate and its key for their names"))
	}
	if u, err := url.Parse(c.PublicURL); err != nil || c.PublicURL != "" && (u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "") {
		errs = append(errs, fmt.Errorf("connector: public URL %q must be like https://connector.example.com", c.PublicURL))
	}
	if c.MaxConnections < 0 {
		errs = append(errs, fmt.Errorf("connector: max connections %d: must be at least 1", c.MaxConnections))
	}
	if c.MaxCallsPerLambda < 0 {
		errs = append(errs, fmt.Errorf("connector: max calls per lambda %d: must be at least 1", c.MaxCallsPerLambda))
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
// name. They are denied by name, and so no Service is called but by its name.
func (c Config) callable() (*targets.Policy, error) {
	system := "*." + v1alpha1.SystemNamespace
	policy, err := c.Targets.Without(system, system+".svc", system+".svc.cluster.local")
	if err != nil {
		return nil, err
	}
	policy = policy.WithServicesByName()
	if c.MeshProxyURL == "" {
		return policy, nil
	}
	proxy, err := c.meshProxy()
	if err != nil {
		return nil, err
	}
	return policy.WithServiceProxy(proxy), nil
}

func (c Config) withDefaults() Config {
	if c.PublicURL == "" {
		c.PublicURL = "https://" + v1alpha1.ServiceConnectorPublic + "." + v1alpha1.SystemNamespace + ".svc"
	}
	if c.TrustDomain == "" {
		c.TrustDomain = v1alpha1.DefaultTrustDomain
	}
	if c.MaxConnections == 0 {
		c.MaxConnections = httpserver.DefaultMaxConns()
	}
	if c.MaxCallsPerLambda == 0 {
		c.MaxCallsPerLambda = max(c.MaxConnections/shareOfLambda, 1)
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
	var heard contact
	c.REST = heard.of(c.REST)
	if err := c.Registry.Register(heard.metric()); err != nil {
		return nil, fmt.Errorf("connector: %w", err)
	}
	known, err := newObjects(c)
	if err != nil {
		return nil, err
	}
	gateway, err := outbound.New(outbound.Config{
		Objects: known.client, Targets: c.Targets, TrustDomain: c.TrustDomain, Log: c.Log, Registry: c.Registry,
		MaxCallsPerLambda: c.MaxCallsPerLambda,
	})
	if err != nil {
		return nil, err
	}
	connections := httpserver.NewMetrics(c.Registry)
	server := func(name string, listener net.Listener, handler http.Handler) httpserver.Config {
		return httpserver.Config{
			Name: name, Listener: listener, Handler: handler, Log: c.Log, MaxConns: c.MaxConnections, Metrics: connections,
		}
	}
	objects := known.component()
	var parts []component.Component
	if c.Admin != nil {
		parts = append(parts, httpserver.New(server("connector-admin", c.Admin, admin(objects, c.Registry)).Administrative()))
	}
	var outside outside
	if c.Public != nil {
		if outside, err = c.public(known, server); err != nil {
			return nil, err
		}
	}
	// The gateways serve when the caches are full: an empty one refuses everybody.
	setup := func(mgr ctrl.Manager) error {
		settings := controller.Config{Targets: c.Targets, Probe: gateway.Probe, Webhooks: len(c.Webhooks.Names) > 0, Log: c.Log}
		if c.Public != nil {
			settings.Token = c.token
		}
		return controller.Setup(mgr, settings)
	}
	activity := controller.Activity{Calls: gateway.TakeActivity, Events: outside.events, Webhooks: outside.webhooks}
	parts = append(parts, objects, controller.NewActivity(known.client, activity, c.Log), known.controllers(c, setup),
		httpserver.New(server("connector-outbound", c.Outbound, gateway)))
	return component.NewGroup("connector", component.GroupConfig{}, append(parts, outside.parts...)...), nil
}

// token makes a token for a TokenRequest, and what its Secret holds.
func (c Config) token(of types.NamespacedName) (token string, secret map[string][]byte, err error) {
	token = pairing.NewToken(of)
	secret = map[string][]byte{"token": []byte(token), "url": []byte(pairing.InfoURL(strings.TrimSuffix(c.PublicURL, "/"), token))}
	roots := c.Roots
	if c.RootsFile != "" {
		if roots, err = os.ReadFile(c.RootsFile); err != nil {
			return "", nil, fmt.Errorf("read what verifies the public port's certificate: %w", err)
		}
	}
	if len(roots) > 0 {
		secret["ca.crt"] = roots
	}
	return token, secret, nil
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
