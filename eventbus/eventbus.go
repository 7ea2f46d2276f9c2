package eventbus

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
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/certwatcher"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/lambdamesh/lambdamesh/eventbus/admin"
	"github.com/lambdamesh/lambdamesh/eventbus/broker/jetstream"
	"github.com/lambdamesh/lambdamesh/eventbus/broker/stan"
	"github.com/lambdamesh/lambdamesh/eventbus/controller"
	"github.com/lambdamesh/lambdamesh/eventbus/dispatch"
	"github.com/lambdamesh/lambdamesh/eventbus/ingress"
	"github.com/lambdamesh/lambdamesh/eventbus/sinkauth"
	"github.com/lambdamesh/lambdamesh/eventbus/tokens"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/component"
	"github.com/lambdamesh/lambdamesh/pkg/httpserver"
	"github.com/lambdamesh/lambdamesh/pkg/kube"
	"github.com/lambdamesh/lambdamesh/pkg/targets"
	"github.com/lambdamesh/lambdamesh/pkg/telemetry"
)

const (
	// readTimeout is how long a client may take to send its request, until ingress
	// has admitted it and watches its body: who is refused holds nothing for longer.
	readTimeout = 10 * time.Second
	// maxIdlePerSink keeps connections to a busy sink open.
	maxIdlePerSink = 256
)

// Config of a bus. The backend must name a NATS, and at least one listener must
// be there to publish on; the rest has defaults.
type Config struct {
	// Backend is the broker that keeps events; default [JetStream]. Its own
	// settings count, those of the other do not.
	Backend   Backend
	JetStream jetstream.Config
	Stan      stan.Config

	// MeshListener takes publishers whose identity their sidecar proved. Nothing
	// but the bus's own sidecar may reach it.
	MeshListener net.Listener
	// TokenListener takes publishers with a service-account token.
	TokenListener net.Listener
	// TokenCertFile and TokenKeyFile are the certificate and key (PEM) with which
	// TokenListener speaks TLS; they are read again when they change. Empty: plain
	// HTTP, for where something before it ends TLS.
	TokenCertFile, TokenKeyFile string
	// OpenListener takes everybody and every source; for loopback.
	OpenListener net.Listener
	// OpenHosts are names the open and the open admin listener answer to besides
	// localhost.
	OpenHosts []string
	// AdminListener serves health, metrics and administration.
	AdminListener net.Listener
	// AdminOpen admits everybody who reaches AdminListener, guarded against
	// browsers; otherwise callers need a token that the API server allows.
	AdminOpen bool

	// MeshProxyURL is the HTTP proxy listener of the bus's sidecar, through which
	// sinks in the mesh are reached. Empty where traffic is captured (Istio).
	MeshProxyURL string
	// Targets decides which URIs may be sinks; default public addresses only.
	Targets *targets.Policy
	// TrustDomain of the mesh; default cluster.local.
	TrustDomain string
	// UnownedSources says what becomes of events whose source neither a workload
	// nor an application owns; default [UnownedRefused]. Without an API server
	// nobody knows of owners, and all are taken.
	UnownedSources UnownedSources
	// MeshPublishers are SPIFFE IDs that may publish any source.
	MeshPublishers []string

	// REST reaches the API server. Without it there is no controller, and
	// subscriptions are set on [Bus.Dispatcher].
	REST *rest.Config
	// Replica names this process in what is kept of attempts; default the host's name.
	Replica string
	// LeaderElection lets one of several replicas dispatch; all take events.
	LeaderElection bool

	// DrainTimeout is how long requests and pushes in flight may take at the
	// stop, each; default 15 s.
	DrainTimeout time.Duration
	// MaxBytesInFlight bounds the memory of events on their way to sinks; see
	// [dispatch.Config].
	MaxBytesInFlight int64
	// MaxConnections bounds the connections of publishers on each listener, see
	// [httpserver.Config]; default [httpserver.DefaultMaxConns].
	MaxConnections int
	// MaxConnectionsPerRemote is how many of them one address may have, on the
	// listeners for tokens and for everybody: on the other all come from the
	// sidecar. Default half of MaxConnections.
	MaxConnectionsPerRemote int
	// Registry takes and serves the metrics; default one of the bus's own.
	Registry *prometheus.Registry
	Log      *slog.Logger // default slog.Default
}

// UnownedSources says what becomes of events of a source that nobody owns.
type UnownedSources string

// The choices.
const (
	// UnownedRefused: they are refused.
	UnownedRefused UnownedSources = "refuse"
	// UnownedOpen: they are taken, and every namespace may read them.
	UnownedOpen UnownedSources = "open"
)

// Defaults fills in what is not set.
func (c Config) Defaults() (Config, error) {
	if c.TrustDomain == "" {
		c.TrustDomain = v1alpha1.DefaultTrustDomain
	}
	if c.DrainTimeout <= 0 {
		c.DrainTimeout = 15 * time.Second
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Registry == nil {
		c.Registry = telemetry.Registry()
	}
	if c.JetStream.Logger == nil {
		c.JetStream.Logger = c.Log
	}
	if c.Stan.Logger == nil {
		c.Stan.Logger = c.Log
	}
	if c.Replica == "" {
		if host, err := os.Hostname(); err == nil {
			c.Replica = host
		}
	}
	if c.UnownedSources == "" {
		c.UnownedSources = UnownedRefused
	}
	if c.Backend == "" {
		c.Backend = JetStream
	}
	if c.MaxConnections == 0 {
		c.MaxConnections = httpserver.DefaultMaxConns()
	}
	if c.MaxConnectionsPerRemote == 0 {
		c.MaxConnectionsPerRemote = max(c.MaxConnections/2, 1)
	}
	c.JetStream, c.Stan = c.JetStream.Defaults(), c.Stan.Defaults()
	if c.Targets == nil {
		policy, err := targets.New(targets.Config{})
		if err != nil {
			return c, fmt.Errorf("event bus: %w", err)
		}
		c.Targets = policy
	}
	return c, nil
}

// Validate names every wrong setting.
func (c Config) Validate() error {
	errs := []error{c.validateBackend()}
	if c.MeshListener == nil && c.TokenListener == nil && c.OpenListener == nil {
		errs = append(errs, errors.New("event bus: no listener to publish on"))
	}
	if c.TokenListener != nil && c.REST == nil {
		errs = append(errs, errors.New("event bus: tokens can only be checked with an API server"))
	}
	if (c.TokenCertFile == "") != (c.TokenKeyFile == "") {
		errs = append(errs, errors.New("event bus: the public listener's certificate and key belong together: set both or none"))
	}
	if c.TokenCertFile != "" && c.TokenListener == nil {
		errs = append(errs, errors.New("event bus: a certificate is set and no public listener that would show it"))
	}
	if c.AdminListener != nil && !c.AdminOpen && c.REST == nil {
		errs = append(errs, errors.New("event bus: the admin port can only be guarded with an API server"))
	}
	if c.UnownedSources != UnownedRefused && c.UnownedSources != UnownedOpen {
		errs = append(errs, fmt.Errorf("event bus: unowned sources %q: must be %s or %s", c.UnownedSources, UnownedRefused, UnownedOpen))
	}
	if c.MaxConnections < 1 {
		errs = append(errs, fmt.Errorf("event bus: max connections %d: must be at least 1", c.MaxConnections))
	}
	if c.MaxConnectionsPerRemote < 1 || c.MaxConnectionsPerRemote > c.MaxConnections {
		errs = append(errs, fmt.Errorf("event bus: max connections per remote %d: must be from 1 to max connections, %d", c.MaxConnectionsPerRemote, c.MaxConnections))
	}
	if c.MeshProxyURL != "" {
		if u, err := url.Parse(c.MeshProxyURL); err != nil || u.Scheme != "http" || u.Host == "" {
			errs = append(errs, fmt.Errorf("event bus: mesh proxy URL %q must be like http://127.0.0.1:15001", c.MeshProxyURL))
		}
	}
	return errors.Join(errs...)
}

// Bus is an event bus. It is a component.
type Bus struct {
	*component.Group
	store      Store
	dispatcher *dispatch.Dispatcher
}

// Store is where the bus keeps its events.
func (b *Bus) Store() Store { return b.store }

// Dispatcher pushes events; without an API server subscriptions are set here.
func (b *Bus) Dispatcher() *dispatch.Dispatcher { return b.dispatcher }

// New builds a bus from config; Run starts it.
func New(config Config) (*Bus, error) {
	config, err := config.Defaults()
	if err != nil {
		return nil, err
	}
	if err := config.Validate(); err != nil {
		return nil, err
	}
	store, ackWait, err := config.openBackend()
	if err != nil {
		return nil, err
	}
	b := &Bus{store: store}
	changes := controller.NewChanges()
	var mgr ctrl.Manager
	var direct, mesh targets.DialFunc
	if config.REST != nil {
		if mgr, err = newManager(config); err != nil {
			return nil, err
		}
		direct = controller.DirectDial(mgr.GetClient())
		if config.MeshProxyURL == "" {
			mesh = controller.MeshDial(mgr.GetClient(), (&net.Dialer{Timeout: 5 * time.Second, KeepAlive: 30 * time.Second}).DialContext)
		}
	}
	b.dispatcher = dispatch.New(dispatch.Config{
		Source:       b.store,
		DeadLetters:  b.store,
		Mesh:         meshTransport(config.MeshProxyURL, mesh),
		Direct:       config.Targets.Transport(targets.ClientOptions{Dial: direct}),
		Changed:      changes.Report,
		DrainTimeout: config.DrainTimeout,
		ExtendEvery:  ackWait / 3,

		MaxBytesInFlight: config.MaxBytesInFlight,

		Attempts: attempts(store),
		Replica:  config.Replica,

		Metrics: dispatch.NewMetrics(config.Registry),
		Log:     config.Log,
	})

	var publishers ingress.Publishers
	var subscribed func(string) []string
	var owned func(string) bool
	var kubeClient kubernetes.Interface
	var reviews *tokens.Reviews
	var directory admin.Directory
	var parts []component.Component
	if config.REST != nil {
		consumers, _ := b.store.(controller.Consumers) // nil where the broker does not list them
		auths := sinkauth.New(sinkauth.Config{Secrets: mgr.GetAPIReader(), Targets: config.Targets, Dial: direct})
		if err := controller.Register(mgr, b.dispatcher, consumers, config.Targets, auths, changes, config.UnownedSources == UnownedOpen); err != nil {
			return nil, err
		}
		if config.UnownedSources == UnownedRefused {
			owned = controller.Owned(mgr.GetClient())
		}
		directory = controller.NewDirectory(mgr.GetClient(), config.Targets, config.UnownedSources == UnownedOpen)
		publishers, subscribed = controller.Publishers(mgr.GetClient()), controller.Subscribed(mgr.GetClient())
		if kubeClient, err = kubernetes.NewForConfig(config.REST); err != nil {
			return nil, fmt.Errorf("event bus: %w", err)
		}
		reviews = tokens.New(kubeClient.AuthenticationV1().TokenReviews(), func(ctx context.Context) ([]byte, error) {
			return kubeClient.Discovery().RESTClient().Get().AbsPath("/openid/v1/jwks").Do(ctx).Raw()
		})
		if err := mgr.Add(manager.RunnableFunc(func(ctx context.Context) error { // as long as this replica leads
			<-ctx.Done()
			b.dispatcher.Drain() // and only then another one may
			return nil
		})); err != nil {
			return nil, fmt.Errorf("event bus: %w", err)
		}
		parts = append(parts, managerComponent(mgr, config.DrainTimeout))
	}

	// Started first, stopped last: health is told from the beginning, and the
	// store is there as long as anybody uses it.
	all, connections := []component.Component{}, httpserver.NewMetrics(config.Registry)
	if config.AdminListener != nil {
		all = append(all, b.adminServer(config, connections, reviews, kubeClient, directory))
	}
	all = append(all, b.store, b.dispatcher)
	all = append(all, parts...)
	var publicTLS *tls.Config
	if config.TokenCertFile != "" {
		certificate, tlsConfig, err := serverTLS(config)
		if err != nil {
			return nil, err
		}
		publicTLS, all = tlsConfig, append(all, certificate)
	}
	all = append(all, b.publishServers(config, publicTLS, connections, reviews, publishers, subscribed, owned)...)
	b.Group = component.NewGroup("eventbus", component.GroupConfig{}, all...)
	return b, nil
}

// serverTLS returns the TLS of the public listener, and the part that reads its
// certificate again when the files change.
func serverTLS(config Config) (component.Component, *tls.Config, error) {
	watcher, err := certwatcher.New(config.TokenCertFile, config.TokenKeyFile)
	if err != nil {
		return nil, nil, fmt.Errorf("event bus: read the certificate of the public listener: %w", err)
	}
	return component.New("eventbus-certificate", func(ctx context.Context, ready func()) error {
		ready()
		return watcher.Start(ctx)
	}), &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: watcher.GetCertificate}, nil
}

// meshTransport goes through the sidecar's proxy, or, where it captures the
// traffic, dials as dial does; nil: as net.Dialer.
func meshTransport(proxy string, dial targets.DialFunc) http.RoundTripper {
	if dial == nil {
		dial = (&net.Dialer{Timeout: 5 * time.Second, KeepAlive: 30 * time.Second}).DialContext
	}
	t := &http.Transport{
		MaxIdleConnsPerHost: maxIdlePerSink,
		IdleConnTimeout:     90 * time.Second,
		DisableCompression:  true,
		DialContext:         dial,
	}
	if proxy != "" {
		// Validated to be a URL.
		t.Proxy = func(*http.Request) (*url.URL, error) { return url.Parse(proxy) }
	}
	return t
}

func newManager(config Config) (ctrl.Manager, error) {
	scheme, err := kube.Scheme()
	if err != nil {
		return nil, fmt.Errorf("event bus: %w", err)
	}
	var cached cache.Options
	controller.ConfigureCache(&cached)
	grace := config.DrainTimeout + managerGrace
	mgr, err := ctrl.NewManager(config.REST, ctrl.Options{
		GracefulShutdownTimeout:       &grace,
		Scheme:                        scheme,
		Cache:                         cached,
		Logger:                        telemetry.Logr(config.Log),
		Metrics:                       metricsserver.Options{BindAddress: "0"},
		HealthProbeBindAddress:        "0",
		LeaderElection:                config.LeaderElection,
		LeaderElectionID:              "eventbus." + v1alpha1.Group,
		LeaderElectionNamespace:       v1alpha1.SystemNamespace,
		LeaderElectionReleaseOnCancel: true,
	})
	if err != nil {
		return nil, fmt.Errorf("event bus: %w", err)
	}
	return mgr, nil
}

// managed is a component that may take its time to stop.
type managed struct {
	component.Component
	stop time.Duration
}

// StopTimeout is the time Run may take to return once its context ended.
func (m managed) StopTimeout() time.Duration { return m.stop }

// managerGrace is what the manager may take to stop besides the drain.
const managerGrace = 10 * time.Second

// managerComponent is ready when the manager's caches are.
func managerComponent(mgr ctrl.Manager, drain time.Duration) component.Component {
	return managed{stop: drain + managerGrace + time.Second, Component: component.New("eventbus-controller", func(ctx context.Context, ready func()) error {
		go func() {
			if mgr.GetCache().WaitForCacheSync(ctx) {
				ready()
			}
		}()
		return mgr.Start(ctx)
	})}
}

func (b *Bus) adminServer(config Config, connections *httpserver.Metrics, reviews *tokens.Reviews, client kubernetes.Interface, directory admin.Directory) component.Component {
	settings := admin.Config{
		DeadLetters: b.store,
		Store:       inspected(b.store),
		Directory:   directory,
		Ready:       func(context.Context) error { return b.ready() },
		Metrics:     config.Registry,
	}
	if !config.AdminOpen {
		settings.Authorize = admin.KubernetesAccess(reviews, client)
	}
	handler := admin.New(settings)
	if config.AdminOpen {
		handler = httpserver.BrowserGuard(httpserver.GuardConfig{Hosts: config.OpenHosts}, handler)
	}
	return httpserver.New(httpserver.Config{
		Name: "eventbus-admin", Listener: config.AdminListener, Handler: handler, Log: config.Log,
		DrainTimeout: config.DrainTimeout, Metrics: connections,
	}.Administrative())
}

// ready is nil when every part has started and events can be stored.
func (b *Bus) ready() error {
	select {
	case <-b.Ready():
		return b.store.Check()
	default:
		return errors.New("starting")
	}
}

func (b *Bus) publishServers(config Config, publicTLS *tls.Config, connections *httpserver.Metrics, reviews *tokens.Reviews, publishers ingress.Publishers, subscribed func(string) []string, owned func(string) bool) []component.Component {
	metrics, budget := ingress.NewMetrics(config.Registry), ingress.NewBudget(ingress.DefaultMaxBufferedBytes)
	var servers []component.Component
	serve := func(name string, listener net.Listener, secured *tls.Config, share int, authorizer ingress.Authorizer, guard func(http.Handler) http.Handler) {
		if listener == nil {
			return
		}
		handler := guard(ingress.New(ingress.Config{
			Publisher: b.store, Rememberer: remembers(b.store), Authorizer: authorizer, Subscribed: subscribed, Owned: owned,
			Budget: budget, Metrics: metrics, Log: config.Log,
		}))
		servers = append(servers, httpserver.New(httpserver.Config{
			Name: name, Listener: listener, TLS: secured, Handler: handler, Log: config.Log,
			ReadTimeout: readTimeout, DrainTimeout: config.DrainTimeout,
			MaxConns: config.MaxConnections, MaxConnsPerRemote: share, Metrics: connections,
		}))
	}
	const unshared = 0 // all come from the sidecar
	none := func(next http.Handler) http.Handler { return next }
	serve("eventbus-mesh", config.MeshListener, nil, unshared,
		ingress.Mesh{TrustDomain: config.TrustDomain, Everything: config.MeshPublishers, Publishers: publishers}, none)
	if config.TokenListener != nil {
		serve("eventbus-token", config.TokenListener, publicTLS, config.MaxConnectionsPerRemote, ingress.Tokens{Reviews: reviews, Publishers: publishers}, none)
	}
	serve("eventbus-open", config.OpenListener, nil, config.MaxConnectionsPerRemote, ingress.Open{}, func(next http.Handler) http.Handler {
		return httpserver.BrowserGuard(httpserver.GuardConfig{Hosts: config.OpenHosts}, next)
	})
	return servers
}
