// Command connector runs the connector: the controllers of applications, the
// gateway through which lambdas call their APIs, and the port at which third-party
// systems pair and publish events.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/lambdamesh/lambdamesh/connector"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/config"
	"github.com/lambdamesh/lambdamesh/pkg/httpserver"
	"github.com/lambdamesh/lambdamesh/pkg/kube"
	"github.com/lambdamesh/lambdamesh/pkg/targets"
	"github.com/lambdamesh/lambdamesh/pkg/telemetry"
)

// version is set by the build.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := command(os.Stderr, os.LookupEnv).ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "connector:", err)
		os.Exit(1)
	}
}

// envPrefix of the variables that stand in for flags: LAMBDAMESH_CONNECTOR_LOG_LEVEL
// for --log-level.
const envPrefix = "LAMBDAMESH_CONNECTOR_"

// options are the flags.
type options struct {
	kubeconfig               string
	outbound, public, admin  string
	certFile, keyFile        string
	rootsFile, publicURL     string
	webhooks                 connector.Webhooks
	trustDomain, meshProxy   string
	targets                  targets.Config
	maxConnections, maxCalls int
	leaderElection           bool
	log                      telemetry.LogConfig
}

func command(stderr io.Writer, lookupEnv func(string) (string, bool)) *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use:   "connector",
		Short: "Connects third-party systems: calls their APIs for lambdas, and takes their events",
		Long: `connector connects third-party systems: it calls their APIs for lambdas. At
--public-address they pair and publish events, each with a client certificate of
its own; TLS ends here, so that a certificate can be revoked at once. Under
--webhook-host it takes their webhooks there.

Every flag can be set by an environment variable too: ` + envPrefix + `LOG_LEVEL
for --log-level. A flag on the command line wins.`,
		Version:       version,
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		PreRunE:       func(cmd *cobra.Command, _ []string) error { return config.FromEnv(cmd.Flags(), envPrefix, lookupEnv) },
		RunE:          func(cmd *cobra.Command, _ []string) error { return run(cmd.Context(), o, stderr) },
	}
	f := cmd.Flags()
	f.StringVar(&o.kubeconfig, "kubeconfig", "", "kubeconfig file (default: $KUBECONFIG, ~/.kube/config, or the pod's service account)")
	f.StringVar(&o.outbound, "outbound-address", ":8080", "address of the outbound gateway; nothing but the sidecar may reach it")
	f.StringVar(&o.public, "public-address", ":8443", "address for third-party systems, with TLS; empty: nowhere")
	f.StringVar(&o.certFile, "tls-cert", "", "`FILE` with the certificate that --public-address is served with; it and the key are read again when they change")
	f.StringVar(&o.keyFile, "tls-key", "", "`FILE` with its key")
	f.StringVar(&o.rootsFile, "tls-ca", "", "`FILE` with the certificates that verify it; who pairs gets them with the token")
	f.StringVar(&o.publicURL, "public-url", "", "URL by which third-party systems reach --public-address (default https://connector-public.lambdamesh-system.svc)")
	f.StringSliceVar(&o.webhooks.Names, "webhook-host", nil, "`NAME` of a host under which --public-address takes webhooks, without client certificates, such as hooks.example.com; may be given several times; none: no webhooks")
	f.StringVar(&o.webhooks.CertFile, "webhook-tls-cert", "", "`FILE` with the certificate for --webhook-host, read again when it changes")
	f.StringVar(&o.webhooks.KeyFile, "webhook-tls-key", "", "`FILE` with its key")
	f.StringVar(&o.admin, "admin-address", "127.0.0.1:9090", "address of /healthz, /readyz and /metrics")
	f.StringVar(&o.meshProxy, "mesh-proxy-url", "", "HTTP proxy of the sidecar for targets in the mesh; empty where traffic is captured")
	f.StringVar(&o.trustDomain, "trust-domain", v1alpha1.DefaultTrustDomain, "SPIFFE trust domain of the mesh")
	f.StringSliceVar(&o.targets.Allow, "allow-target", nil, "address, range, name or *.name, each with or without :port, that may be called besides public ones")
	f.StringSliceVar(&o.targets.Deny, "deny-target", nil, "the same, that may never be called")
	f.StringSliceVar(&o.targets.ServiceCIDRs, "service-cidr", nil, "range of the cluster's Service addresses, which may be called by the Services' names; repeatable")
	f.IntVar(&o.maxConnections, "max-connections", 0, "connections on the outbound and on the public address each; headers beyond 16 KiB count as further ones (default what fits into a quarter of GOMEMLIMIT at 64 KiB each, at most 4096)")
	f.IntVar(&o.maxCalls, "max-calls-per-lambda", 0, "calls of one lambda that may be under way; more are answered 429 (default an eighth of --max-connections)")
	f.BoolVar(&o.leaderElection, "leader-elect", true, "let one of several connectors write statuses")
	f.StringVar(&o.log.Level, "log-level", "info", "debug, info, warn or error")
	f.StringVar(&o.log.Format, "log-format", "json", "json or text")
	return cmd
}

func run(ctx context.Context, o options, stderr io.Writer) error {
	log, err := telemetry.Logger(stderr, o.log)
	if err != nil {
		return err
	}
	slog.SetDefault(log)
	ctrllog.SetLogger(telemetry.Logr(log))

	settings := connector.Config{
		TrustDomain: o.trustDomain, MeshProxyURL: o.meshProxy, MaxConnections: o.maxConnections, MaxCallsPerLambda: o.maxCalls,
		LeaderElection: o.leaderElection,
		CertFile:       o.certFile, KeyFile: o.keyFile, RootsFile: o.rootsFile, PublicURL: o.publicURL, Log: log,
		Webhooks: o.webhooks,
	}
	if settings.REST, err = kube.RESTConfig(o.kubeconfig); err != nil {
		return err
	}
	if settings.Targets, err = targets.New(o.targets); err != nil {
		return err
	}
	if o.public != "" && (o.certFile == "" || o.keyFile == "") {
		return errors.New("--public-address is served with TLS: pass --tls-cert and --tls-key, or --public-address=\"\" to serve it nowhere")
	}
	if len(o.webhooks.Names) > 0 && (o.public == "" || o.webhooks.CertFile == "" || o.webhooks.KeyFile == "") {
		return errors.New("--webhook-host is served at --public-address with a certificate of its own: pass --webhook-tls-cert and --webhook-tls-key")
	}
	for _, l := range []struct {
		listener      *net.Listener
		address, flag string
	}{
		{&settings.Outbound, o.outbound, "--outbound-address"},
		{&settings.Public, o.public, "--public-address"},
		{&settings.Admin, o.admin, "--admin-address"},
	} {
		if l.address == "" && l.flag == "--public-address" {
			continue
		}
		if *l.listener, err = httpserver.Listen(ctx, l.address, l.flag); err != nil {
			return err
		}
		log.Info("listening", "for", l.flag, "address", (*l.listener).Addr().String())
	}
	c, err := connector.New(settings)
	if err != nil {
		return err
	}
	return c.Run(ctx)
}
