// Command eventbus takes events over HTTP, stores them in NATS JetStream or NATS
// Streaming, and pushes them to the sinks of Subscriptions.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/lambdamesh/lambdamesh/eventbus"
	"github.com/lambdamesh/lambdamesh/eventbus/broker/jetstream"
	"github.com/lambdamesh/lambdamesh/pkg/config"
	"github.com/lambdamesh/lambdamesh/pkg/httpserver"
	"github.com/lambdamesh/lambdamesh/pkg/kube"
	"github.com/lambdamesh/lambdamesh/pkg/targets"
	"github.com/lambdamesh/lambdamesh/pkg/telemetry"
)

// version is set by the build.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := command(os.LookupEnv).ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "eventbus:", err)
		os.Exit(1)
	}
}

// options are what the flags set.
type options struct {
	config                                          eventbus.Config
	address, meshAddress, openAddress, adminAddress string
	kubeconfig                                      string
	targets                                         targets.Config
	log                                             telemetry.LogConfig
}

const envPrefix = "LAMBDAMESH_EVENTBUS_"

func command(lookupEnv func(string) (string, bool)) *cobra.Command {
	o := &options{}
	cmd := &cobra.Command{
		Use:   "eventbus",
		Short: "Take events over HTTP, store them in NATS JetStream, push them to the sinks of Subscriptions",
		Long: `eventbus takes CloudEvents at POST /publish and legacy events at POST /v1/events,
answers once they are on disk in NATS JetStream, and pushes them to the sinks of
the Subscriptions it finds in the API server.

Every flag can be set by an environment variable too: ` + envPrefix + `NATS_URL for
--nats-url. SIGTERM drains: requests and pushes in flight are finished, the rest
is pushed after the next start.`,
		Example: `  # In a cluster, publishers prove who they are with a service-account token:
  eventbus --nats-url tls://nats:4222 --nats-ca ca.crt --address :8443 --tls-cert tls.crt --tls-key tls.key

  # Behind a sidecar, publishers are known by their mesh identity:
  eventbus --nats-url nats://nats:4222 --address "" --mesh-address unix:/run/eventbus.sock --mesh-proxy-url http://127.0.0.1:15001

  # On a developer's machine, open on loopback:
  eventbus --nats-url nats://127.0.0.1:4222 --address "" --open-address 127.0.0.1:8085

  # With NATS Streaming:
  eventbus --backend stan --nats-url nats://stan:4222 --stan-cluster-id shop --address :8080`,
		Version:       version,
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		PreRunE: func(cmd *cobra.Command, _ []string) error {
			if err := config.FromEnv(cmd.Flags(), envPrefix, lookupEnv); err != nil {
				return err
			}
			return checkBackend(cmd.Flags(), o.config.Backend)
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return run(cmd.Context(), cmd.ErrOrStderr(), o) },
	}
	f := cmd.Flags()
	f.StringVar(&o.config.JetStream.URL, "nats-url", "nats://nats.lambdamesh-system.svc:4222", "NATS servers with JetStream, or with NATS Streaming")
	f.StringVar((*string)(&o.config.Backend), "backend", string(eventbus.JetStream), "broker that keeps events: jetstream, or stan for NATS Streaming")
	f.StringVar(&o.config.Stan.ClusterID, "stan-cluster-id", "", "cluster ID of NATS Streaming")
	f.StringVar(&o.config.Stan.ClientID, "stan-client-id", "", "client ID of NATS Streaming, which owns the positions of subscriptions (default lambdamesh-eventbus)")
	streamFlags(f, &o.config.JetStream)
	f.StringVar(&o.address, "address", ":8080", "where publishers with a service-account token are served; empty: nowhere")
	f.StringVar(&o.config.TokenCertFile, "tls-cert", "", "`FILE` with the certificate that --address is served with; it and the key are read again when they change")
	f.StringVar(&o.config.TokenKeyFile, "tls-key", "", "`FILE` with its key")
	f.StringVar(&o.meshAddress, "mesh-address", "", "where the sidecar forwards to, host:port or unix:/path; nothing else may reach it")
	f.StringVar(&o.openAddress, "open-address", "", "where anybody may publish anything; loopback only")
	f.StringVar(&o.adminAddress, "admin-address", ":9090", "health, metrics and administration")
	f.StringVar(&o.config.MeshProxyURL, "mesh-proxy-url", "", "HTTP proxy of the sidecar for pushes into the mesh; empty where traffic is captured")
	f.StringVar(&o.config.TrustDomain, "trust-domain", "", "trust domain of the mesh (default cluster.local)")
	f.StringSliceVar(&o.config.MeshPublishers, "mesh-publisher", nil, "SPIFFE ID that may publish any source; repeatable")
	f.StringVar((*string)(&o.config.UnownedSources), "unowned-sources", string(eventbus.UnownedRefused), "events of a source that neither a workload nor an Application owns: refuse, or open to every namespace")
	f.StringSliceVar(&o.targets.Allow, "allow-target", nil, "CIDR, host or host:port that sink URIs may name besides public addresses; repeatable")
	f.StringSliceVar(&o.targets.ServiceCIDRs, "service-cidr", nil, "range of the cluster's Service addresses, allowed for sink URIs; repeatable")
	f.BoolVar(&o.config.LeaderElection, "leader-elect", true, "let one of several replicas dispatch")
	f.DurationVar(&o.config.DrainTimeout, "drain-timeout", 0, "how long requests and pushes in flight may take at the stop (default 15s)")
	f.Int64Var(&o.config.MaxBytesInFlight, "max-bytes-in-flight", 0, "memory in bytes that events on their way to sinks may take (default a quarter of GOMEMLIMIT)")
	f.IntVar(&o.config.MaxConnections, "max-connections", 0, "publishers' connections on each address; headers beyond 16 KiB count as further ones (default what fits into a quarter of GOMEMLIMIT at 64 KiB each, at most 4096)")
	f.IntVar(&o.config.MaxConnectionsPerRemote, "max-connections-per-remote", 0, "how many of them one client address may have, except on --mesh-address (default half of --max-connections)")
	f.StringVar(&o.kubeconfig, "kubeconfig", "", "kubeconfig file (default $KUBECONFIG, or the pod's service account)")
	logFlags(f, &o.log)
	cmd.AddCommand(migrateCommand(lookupEnv), natsCommand(lookupEnv))
	return cmd
}

func streamFlags(f *pflag.FlagSet, settings *jetstream.Config) {
	f.StringVar(&settings.Access.CredentialsFile, "nats-credentials", "", "NATS credentials `FILE`")
	f.StringVar(&settings.Access.UserFile, "nats-user-file", "", "`FILE` with the user's name at NATS; read at each connection, as the files below are")
	f.StringVar(&settings.Access.PasswordFile, "nats-password-file", "", "`FILE` with the user's password")
	f.StringVar(&settings.Access.CAFile, "nats-ca", "", "`FILE` with the certificates that sign NATS's; with it only TLS is spoken")
	f.StringVar(&settings.Access.CertFile, "nats-cert", "", "`FILE` with the certificate to show to NATS")
	f.StringVar(&settings.Access.KeyFile, "nats-key", "", "`FILE` with its key")
	f.DurationVar(&settings.MaxAge, "max-age", 0, "how long JetStream keeps events that every subscription is done with (default 168h)")
	f.Int64Var(&settings.MaxBytes, "max-bytes", 0, "space for events in bytes; a full store refuses (default 1 GiB)")
	f.Int64Var(&settings.DeadLetterMaxBytes, "dead-letter-max-bytes", 0, "space for dead letters in bytes (default 256 MiB)")
	f.DurationVar(&settings.DedupWindow, "dedup-window", 0, "how long a repeated source and id is recognized (default 10m)")
	f.IntVar(&settings.Replicas, "replicas", 1, "copies of each event in the NATS cluster")
}

func logFlags(f *pflag.FlagSet, config *telemetry.LogConfig) {
	f.StringVar(&config.Level, "log-level", "info", "debug, info, warn or error")
	f.StringVar(&config.Format, "log-format", "json", "json or text")
}

// checkBackend refuses settings that the chosen backend would ignore.
func checkBackend(flags *pflag.FlagSet, backend eventbus.Backend) error {
	var errs []error
	for _, name := range []string{"max-age", "max-bytes", "dead-letter-max-bytes", "replicas"} {
		if backend == eventbus.NATSStreaming && flags.Changed(name) {
			errs = append(errs, fmt.Errorf("--%s: NATS Streaming keeps and limits what its own configuration says; leave the flag out", name))
		}
	}
	for _, name := range []string{"stan-cluster-id", "stan-client-id"} {
		if backend != eventbus.NATSStreaming && flags.Changed(name) {
			errs = append(errs, fmt.Errorf("--%s counts with --backend stan only", name))
		}
	}
	return errors.Join(errs...)
}

func run(ctx context.Context, stderr io.Writer, o *options) error {
	log, err := telemetry.Logger(stderr, o.log)
	if err != nil {
		return err
	}
	ctrllog.SetLogger(telemetry.Logr(log)) // what watches the certificate writes there
	o.config.Log = log
	o.config.Stan.URL, o.config.Stan.Access = o.config.JetStream.URL, o.config.JetStream.Access
	o.config.Stan.DedupWindow = o.config.JetStream.DedupWindow
	if o.config.Targets, err = targets.New(o.targets); err != nil {
		return err
	}
	if o.config.REST, err = kube.RESTConfig(o.kubeconfig); err != nil {
		return err
	}
	for _, l := range []struct {
		to            *net.Listener
		address, flag string
	}{
		{&o.config.TokenListener, o.address, "--address"},
		{&o.config.MeshListener, o.meshAddress, "--mesh-address"},
		{&o.config.OpenListener, o.openAddress, "--open-address"},
		{&o.config.AdminListener, o.adminAddress, "--admin-address"},
	} {
		if l.address == "" {
			continue
		}
		if *l.to, err = httpserver.Listen(ctx, l.address, l.flag); err != nil {
			return err
		}
	}
	if open := o.config.OpenListener; open != nil {
		if addr, ok := open.Addr().(*net.TCPAddr); ok && !addr.IP.IsLoopback() {
			return fmt.Errorf("--open-address %s: anybody could publish there; use a loopback address", o.openAddress)
		}
	}
	bus, err := eventbus.New(o.config)
	if err != nil {
		return err
	}
	log.Info("event bus starts", "backend", o.config.Backend, "nats", o.config.JetStream.Servers())
	return bus.Run(ctx)
}
