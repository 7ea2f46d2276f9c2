package dev

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	ctrlconfig "sigs.k8s.io/controller-runtime/pkg/config"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/lambdamesh/lambdamesh/lambdas/build"
	lambdacontroller "github.com/lambdamesh/lambdamesh/lambdas/controller"
	"github.com/lambdamesh/lambdamesh/lambdas/deploy"
	"github.com/lambdamesh/lambdamesh/lambdas/localnode"
	"github.com/lambdamesh/lambdamesh/lambdas/source"
	"github.com/lambdamesh/lambdamesh/meshconfig/ads"
	meshcontroller "github.com/lambdamesh/lambdamesh/meshconfig/controller"
	"github.com/lambdamesh/lambdamesh/meshconfig/jwks"
	meshoutput "github.com/lambdamesh/lambdamesh/meshconfig/output"
	envoyoutput "github.com/lambdamesh/lambdamesh/meshconfig/output/envoy"
	istiooutput "github.com/lambdamesh/lambdamesh/meshconfig/output/istio"
	"github.com/lambdamesh/lambdamesh/meshconfig/proxy"
	"github.com/lambdamesh/lambdamesh/meshconfig/translate"
	meshwatch "github.com/lambdamesh/lambdamesh/meshconfig/watch"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/component"
	"github.com/lambdamesh/lambdamesh/pkg/telemetry"
)

// onOneMachine is a bound for what everything on the machine has together.
const onOneMachine = 4096

// gitPoll is how soon a push to a git source is seen.
const gitPoll = 10 * time.Second

// addControlPlane adds the controllers of meshconfig and lambdas, with both
// outputs: the embedded proxies are programmed over ADS, and the Istio objects
// are in the API server for who wants to look or runs an istiod.
func (m *mesh) addControlPlane() error {
	toolchain, err := build.NewToolchain(build.ToolchainConfig{Dir: m.cfg.path("artifacts")})
	if err != nil {
		return err
	}
	m.artifacts = build.Directory{Toolchain: toolchain}
	var caches cache.Options
	meshwatch.ConfigureCache(&caches)
	lambdacontroller.ConfigureCache(&caches)
	mgr, err := ctrl.NewManager(m.rest, ctrl.Options{
		Scheme: m.scheme, Cache: caches,
		Logger:                 telemetry.Logr(m.log("controllers")),
		Metrics:                metricsserver.Options{BindAddress: "0"},
		HealthProbeBindAddress: "0",
		Controller:             ctrlconfig.Controller{SkipNameValidation: new(true)},
	})
	if err != nil {
		return fmt.Errorf("make the controllers: %w", err)
	}
	builder := &build.Pipeline{
		Toolchain: toolchain, Store: m.artifacts, Poll: gitPoll,
		Git: &source.Git{Targets: m.targets, Secret: lambdacontroller.Secrets(mgr.GetAPIReader())},
	}
	if err := lambdacontroller.Add(mgr, lambdacontroller.Config{Builder: builder, Deploy: deploy.Options{ToZero: true}, Log: m.log("lambdas")}); err != nil {
		return err
	}
	clientset, err := kubernetes.NewForConfig(m.rest)
	if err != nil {
		return fmt.Errorf("connect to the local API server: %w", err)
	}
	m.clientset = clientset
	envoy, err := envoyoutput.New(envoyoutput.Config{
		ADS: ads.Config{
			Listener: m.sockets.xds, CA: m.authority, Log: m.log("ads"),
			Authenticator: ads.TokenReview(clientset.AuthenticationV1().TokenReviews()),
			// On loopback all data planes have one address.
			MaxUnproven: onOneMachine, MaxUnprovenPerRemote: onOneMachine, MaxConnsPerRemote: onOneMachine,
		},
		Cache: mgr.GetCache(), Reader: mgr.GetAPIReader(),
	})
	if err != nil {
		return err
	}
	istio, err := istiooutput.New(istiooutput.Config{
		Cache: mgr.GetCache(), Client: mgr.GetClient(), Log: m.log("istio"),
	})
	if err != nil {
		return err
	}
	var limits translate.Limits
	if err := limits.Set(m.cfg.Limits); err != nil {
		return fmt.Errorf("--limit: %w", err)
	}
	controller, err := meshcontroller.New(meshcontroller.Config{
		Cache: mgr.GetCache(), Client: mgr.GetClient(), Reader: mgr.GetAPIReader(),
		Outputs: []meshoutput.Output{envoy, istio},
		JWKS:    jwks.Config{Policy: m.targets},
		Settings: translate.Settings{Limits: limits, Targets: m.backends, Local: true, AdvertisedPorts: map[uint32]uint32{
			gatewayPort: portNumber(m.sockets.gateway), gatewayTLSPort: portNumber(m.sockets.gatewayTLS),
		}},
		Log: m.log("meshconfig"),
	})
	if err != nil {
		return err
	}
	manager := component.New("controllers", func(ctx context.Context, ready func()) error {
		go func() {
			if mgr.GetCache().WaitForCacheSync(ctx) {
				ready()
			}
		}()
		return mgr.Start(ctx)
	})
	m.components = append(m.components, gatewayCertificate(m.client, m.authority), manager, controller, envoy.Server())
	return nil
}

// addGateway adds the embedded proxy in Envoy's place.
func (m *mesh) addGateway() error {
	p, err := m.newProxy("gateway~"+v1alpha1.SystemNamespace+"~"+gatewayName+"~dev",
		v1alpha1.SystemNamespace, v1alpha1.ServiceAccountGateway,
		newHandOut(map[string]net.Listener{
			fmt.Sprint(gatewayPort): m.sockets.gateway, fmt.Sprint(gatewayTLSPort): m.sockets.gatewayTLS,
		}).listen(byPort))
	if err != nil {
		return err
	}
	m.components = append(m.components, named{p, "gateway"})
	return nil
}

// named gives a component another name for people.
type named struct {
	component.Component
	name string
}

func (n named) Name() string { return n.name }

// newProxy makes an embedded proxy that authenticates as a service account.
func (m *mesh) newProxy(node, namespace, serviceAccount string, listen func(context.Context, string, string) (net.Listener, error)) (*proxy.Proxy, error) {
	return proxy.New(proxy.Config{
		NodeID: node, ADSAddress: m.sockets.xds.Addr().String(), RootCAs: m.authority.Roots,
		Token: m.tokenFor(namespace, serviceAccount), Listen: listen, Log: m.log("proxy"),
	})
}

// tokenFor asks the API server for a service account's token, as a kubelet does
// for a pod.
func (m *mesh) tokenFor(namespace, serviceAccount string) func(context.Context) (string, error) {
	return func(ctx context.Context) (string, error) {
		request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{Audiences: []string{v1alpha1.XDSTokenAudience}}}
		answer, err := m.clientset.CoreV1().ServiceAccounts(namespace).CreateToken(ctx, serviceAccount, request, metav1.CreateOptions{})
		if err != nil {
			return "", fmt.Errorf("request a token for service account %s/%s: %w", namespace, serviceAccount, err)
		}
		return answer.Status.Token, nil
	}
}

// startMemberProxy makes the sidecar of the event bus or the connector.
func (m *mesh) startMemberProxy(member *member) (component.Component, error) {
	return m.newProxy(member.name+"."+v1alpha1.SystemNamespace, v1alpha1.SystemNamespace, member.name,
		newHandOut(map[string]net.Listener{
			member.inbound.Addr().String(): member.inbound, member.egress.Addr().String(): member.egress,
		}).listen(byAddress))
}

// replicaSidecars gives the local node its sidecars.
type replicaSidecars struct{ *mesh }

// Start implements localnode.Sidecars.
func (s replicaSidecars) Start(ctx context.Context, r localnode.Replica) (localnode.Sidecar, error) {
	p, err := s.newProxy(r.Name+"."+r.Namespace, r.Namespace, r.ServiceAccount,
		newHandOut(map[string]net.Listener{
			r.InboundListener.Addr().String(): r.InboundListener, r.EgressListener.Addr().String(): r.EgressListener,
		}).listen(byAddress))
	if err != nil {
		return nil, errors.Join(err, r.InboundListener.Close(), r.EgressListener.Close())
	}
	// ctx bounds the starting only; the sidecar runs until it is stopped.
	running, cancel := context.WithCancel(context.WithoutCancel(ctx))
	sidecar := &replicaSidecar{Proxy: p, cancel: cancel, done: make(chan error, 1)}
	go func() {
		err := p.Run(running)
		// Those that the proxy never asked for are still open.
		_, _ = r.InboundListener.Close(), r.EgressListener.Close()
		sidecar.done <- err
	}()
	return sidecar, nil
}

type replicaSidecar struct {
	*proxy.Proxy
	cancel context.CancelFunc
	done   chan error
}

// Stop implements localnode.Sidecar.
func (s *replicaSidecar) Stop(ctx context.Context) error {
	s.cancel()
	select {
	case err := <-s.done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("stop %s: %w", s.Name(), ctx.Err())
	}
}

// kubernetesAddress is the API server's host:port.
func kubernetesAddress(cfg *rest.Config) (string, error) {
	if !strings.Contains(cfg.Host, "://") {
		return cfg.Host, nil
	}
	u, err := url.Parse(cfg.Host)
	if err != nil {
		return "", fmt.Errorf("read the API server's address %s: %w", cfg.Host, err)
	}
	return u.Host, nil
}
