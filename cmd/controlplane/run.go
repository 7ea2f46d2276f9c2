package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrlmetrics "sigs.k8s.io/controller-runtime/pkg/metrics"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/lambdamesh/lambdamesh/lambdas/build"
	lambdas "github.com/lambdamesh/lambdamesh/lambdas/controller"
	"github.com/lambdamesh/lambdamesh/lambdas/deploy"
	"github.com/lambdamesh/lambdamesh/lambdas/source"
	"github.com/lambdamesh/lambdamesh/meshconfig/ads"
	"github.com/lambdamesh/lambdamesh/meshconfig/ca"
	mesh "github.com/lambdamesh/lambdamesh/meshconfig/controller"
	"github.com/lambdamesh/lambdamesh/meshconfig/jwks"
	"github.com/lambdamesh/lambdamesh/meshconfig/members"
	meshoutput "github.com/lambdamesh/lambdamesh/meshconfig/output"
	envoyoutput "github.com/lambdamesh/lambdamesh/meshconfig/output/envoy"
	istiooutput "github.com/lambdamesh/lambdamesh/meshconfig/output/istio"
	"github.com/lambdamesh/lambdamesh/meshconfig/translate"
	meshwatch "github.com/lambdamesh/lambdamesh/meshconfig/watch"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/component"
	"github.com/lambdamesh/lambdamesh/pkg/httpserver"
	"github.com/lambdamesh/lambdamesh/pkg/kube"
	"github.com/lambdamesh/lambdamesh/pkg/sidecar"
	"github.com/lambdamesh/lambdamesh/pkg/targets"
	"github.com/lambdamesh/lambdamesh/pkg/telemetry"
)

// options are what the flags set.
type options struct {
	mesh           string
	meshConfig     string
	xdsAddress     string
	xdsServerNames []string
	adminAddress   string
	leaderElection bool
	namespace      string
	trustDomain    string
	targets        targets.Config
	limits         map[string]int
	domain         string
	secrets        []string
	overlap        time.Duration
	images         build.Mounts
	buildDir       string
	gitPoll        time.Duration
	sidecars       sidecarOptions
	kubeconfig     string
	log            telemetry.LogConfig
}

// parts are what the outputs of a mesh are made of.
type parts struct {
	*options
	manager  ctrl.Manager
	settings translate.Settings
	// meshConfig of Istio; empty in other meshes.
	meshConfig types.NamespacedName
	log        *slog.Logger
	registry   *prometheus.Registry
	// authority of the mesh; nil where nothing is signed.
	authority *ca.CA
	// sidecar of lambdas' pods; nil where Istio injects one.
	sidecar *sidecar.Config
}

func run(ctx context.Context, stderr io.Writer, o *options) error {
	log, err := telemetry.Logger(stderr, o.log)
	if err != nil {
		return err
	}
	ctrl.SetLogger(telemetry.Logr(log))
	// What a mesh needs: its output, and what runs once that has its first mesh.
	meshes := map[string]func(context.Context, *parts) (meshoutput.Output, []component.Component, error){"istio": istioMesh, "envoy": envoyMesh}
	newMesh, known := meshes[o.mesh]
	if !known {
		return fmt.Errorf("--mesh %q: use istio or envoy", o.mesh)
	}
	policy, err := targets.New(o.targets)
	if err != nil {
		return err
	}
	var limits translate.Limits
	if err := limits.Set(o.limits); err != nil {
		return fmt.Errorf("--limit: %w", err)
	}
	manager, err := newManager(o)
	if err != nil {
		return err
	}
	p := &parts{
		options: o, manager: manager, log: log,
		registry: prometheus.NewRegistry(), // the manager's has those of the process
		settings: translate.Settings{
			TrustDomain: o.trustDomain, SystemNamespace: o.namespace,
			GatewayServiceAccount: types.NamespacedName{Namespace: o.namespace, Name: v1alpha1.ServiceAccountGateway},
			Limits:                limits, Targets: policy,
		},
	}
	if err := p.openAuthority(ctx); err != nil {
		return err
	}
	output, servers, err := newMesh(ctx, p)
	if err != nil {
		return err
	}
	meshController, err := mesh.New(mesh.Config{
		Cache: manager.GetCache(), Client: manager.GetClient(), Reader: manager.GetAPIReader(),
		Outputs: []meshoutput.Output{output}, JWKS: jwks.Config{Policy: policy}, Elected: manager.Elected(),
		MeshConfig: p.meshConfig, Settings: p.settings, Log: log, Registry: p.registry,
	})
	if err != nil {
		return err
	}
	toolchain, err := build.NewToolchain(build.ToolchainConfig{Dir: o.buildDir})
	if err != nil {
		return fmt.Errorf("--build-dir: %w", err)
	}
	if err := lambdas.Add(manager, lambdas.Config{
		Builder: &build.Pipeline{
			Toolchain: toolchain, Store: o.images, Poll: o.gitPoll,
			Git: &source.Git{Targets: policy, Secret: lambdas.Secrets(manager.GetAPIReader())},
		},
		Log: log,
		Deploy: deploy.Options{
			TrustDomain: o.trustDomain, SystemNamespace: o.namespace,
			Gateways: []types.NamespacedName{p.settings.GatewayServiceAccount},
			Sidecar:  p.sidecar,
		},
	}); err != nil {
		return err
	}
	if err := addInstall(p); err != nil {
		return err
	}
	adminListener, err := httpserver.Listen(ctx, o.adminAddress, "--admin-address")
	if err != nil {
		return err
	}

	// Servers start last, so that no data plane is answered before its caches
	// have synced.
	work := component.NewGroup("controlplane", component.GroupConfig{
		OnReady: func(name string, elapsed time.Duration) { log.Info("ready", "component", name, "after", elapsed) },
	}, append([]component.Component{managerComponent(manager), meshController}, servers...)...)
	admin := httpserver.New(httpserver.Config{
		Name: "admin", Listener: adminListener, Handler: adminHandler(p.registry, work), Log: log, Metrics: httpserver.NewMetrics(p.registry),
	}.Administrative())
	log.Info("control plane starts", "version", version, "mesh", o.mesh)
	return component.NewGroup("process", component.GroupConfig{}, admin, work).Run(ctx)
}

func newManager(o *options) (ctrl.Manager, error) {
	config, err := kube.RESTConfig(o.kubeconfig)
	if err != nil {
		return nil, err
	}
	scheme, err := kube.Scheme()
	if err != nil {
		return nil, err
	}
	options := ctrl.Options{
		Scheme:                        scheme,
		Metrics:                       metricsserver.Options{BindAddress: "0"}, // served at --admin-address
		LeaderElection:                o.leaderElection,
		LeaderElectionID:              "lambdamesh-controlplane",
		LeaderElectionNamespace:       o.namespace,
		LeaderElectionReleaseOnCancel: true, // writers have stopped by then
	}
	meshwatch.ConfigureCache(&options.Cache)
	members.ConfigureCache(&options.Cache)
	lambdas.ConfigureCache(&options.Cache)
	manager, err := ctrl.NewManager(config, options)
	if err != nil {
		return nil, fmt.Errorf("connect to the API server: %w", err)
	}
	return manager, nil
}

func managerComponent(manager ctrl.Manager) component.Component {
	return component.New("manager", func(ctx context.Context, ready func()) error {
		go func() {
			if manager.GetCache().WaitForCacheSync(ctx) {
				ready()
			}
		}()
		return manager.Start(ctx)
	})
}

func istioMesh(_ context.Context, p *parts) (meshoutput.Output, []component.Component, error) {
	namespace, name, found := strings.Cut(p.options.meshConfig, "/")
	if !found || namespace == "" || name == "" {
		return nil, nil, fmt.Errorf("--istio-mesh-config %q: write namespace/name of the ConfigMap with Istio's MeshConfig", p.options.meshConfig)
	}
	p.meshConfig = types.NamespacedName{Namespace: namespace, Name: name}
	output, err := istiooutput.New(istiooutput.Config{
		Cache: p.manager.GetCache(), Client: p.manager.GetClient(), Elected: p.manager.Elected(), Log: p.log,
	})
	return output, nil, err
}

func envoyMesh(ctx context.Context, p *parts) (meshoutput.Output, []component.Component, error) {
	var err error
	if p.sidecar, err = p.sidecars.config(); err != nil {
		return nil, nil, err
	}
	clients, err := kubernetes.NewForConfig(p.manager.GetConfig())
	if err != nil {
		return nil, nil, fmt.Errorf("connect to the API server: %w", err)
	}
	names := p.xdsServerNames
	if len(names) == 0 {
		service := "controlplane." + p.namespace
		names = []string{service + ".svc", service, service + ".svc.cluster.local", "localhost", "127.0.0.1"}
	}
	listener, err := httpserver.Listen(ctx, p.xdsAddress, "--xds-address")
	if err != nil {
		return nil, nil, err
	}
	peers, err := newPeers(p)
	if err != nil {
		return nil, nil, errors.Join(err, listener.Close())
	}
	output, err := envoyoutput.New(envoyoutput.Config{
		ADS: ads.Config{
			Listener: listener, CA: p.authority, ServerNames: names, TrustDomain: p.trustDomain,
			Authenticator: ads.TokenReview(clients.AuthenticationV1().TokenReviews()), Log: p.log, Registry: p.registry,
		},
		Cache: p.manager.GetCache(), Reader: p.manager.GetAPIReader(), GatewayServiceAccount: p.settings.GatewayServiceAccount,
		Peers: peers,
	})
	if err != nil {
		return nil, nil, errors.Join(err, listener.Close())
	}
	servers, err := addMembers(ctx, p, names)
	if err != nil {
		return nil, nil, errors.Join(err, listener.Close())
	}
	return output, append([]component.Component{output.Server()}, servers...), nil
}

// newPeers lets replicas know each other by their host names, which in a
// cluster are their pods'. Without a leader there is one only.
func newPeers(p *parts) (*envoyoutput.PeersConfig, error) {
	if !p.leaderElection {
		return nil, nil
	}
	name, err := os.Hostname()
	if err != nil {
		return nil, fmt.Errorf("find this replica's name: %w", err)
	}
	direct, err := client.New(p.manager.GetConfig(), client.Options{Scheme: p.manager.GetScheme()})
	if err != nil {
		return nil, fmt.Errorf("connect to the API server: %w", err)
	}
	return &envoyoutput.PeersConfig{Client: direct, Namespace: p.namespace, Name: strings.ToLower(name)}, nil
}

func adminHandler(registry *prometheus.Registry, work component.Component) http.Handler {
	mux := httpserver.Health(func(context.Context) error {
		select {
		case <-work.Ready():
			return nil
		default:
			return errors.New("the caches have not synced yet")
		}
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(prometheus.Gatherers{registry, ctrlmetrics.Registry}, promhttp.HandlerOpts{}))
	mux.HandleFunc("/", httpserver.NotFound)
	return mux
}
