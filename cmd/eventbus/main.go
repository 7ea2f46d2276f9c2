// Command eventbus takes events over HTTP, stores them in NATS JetStream and
// pushes them to the sinks of Subscriptions.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/lambdamesh/lambdamesh/eventbus"
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
  eventbus --nats-url nats://nats:4222 --address :8080

  # Behind a sidecar, publishers are known by their mesh identity:
  eventbus --nats-url nats://nats:4222 --address "" --mesh-address unix:/run/eventbus.sock --mesh-proxy-url http://127.0.0.1:15001

  # On a developer's machine, open on loopback:
  eventbus --nats-url nats://127.0.0.1:4222 --address "" --open-address 127.0.0.1:8085`,
		Version:       version,
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		PreRunE:       func(cmd *cobra.Command, _ []string) error { return fromEnv(cmd.Flags(), lookupEnv) },
		RunE:          func(cmd *cobra.Command, _ []string) error { return run(cmd.Context(), cmd.ErrOrStderr(), o) },
	}
	f := cmd.Flags()
	f.StringVar(&o.config.Stream.URL, "nats-url", "nats://nats.lambdamesh-system.svc:4222", "NATS servers with JetStream")
	f.StringVar(&o.config.Stream.CredentialsFile, "nats-credentials", "", "NATS credentials file")
	f.DurationVar(&o.config.Stream.MaxAge, "max-age", 0, "how long events are kept (default 168h)")
	f.Int64Var(&o.config.Stream.MaxBytes, "max-bytes", 0, "space for events in bytes; a full store refuses (default 1 GiB)")
	f.Int64Var(&o.config.Stream.DeadLetterMaxBytes, "dead-letter-max-bytes", 0, "space for dead letters in bytes (default 256 MiB)")
	f.DurationVar(&o.config.Stream.DedupWindow, "dedup-window", 0, "how long a repeated source and id is recognized (default 10m)")
	f.IntVar(&o.config.Stream.Replicas, "replicas", 1, "copies of each event in the NATS cluster")
	f.StringVar(&o.address, "address", ":8080", "where publishers with a service-account token are served; empty: nowhere")
	f.StringVar(&o.meshAddress, "mesh-address", "", "where the sidecar forwards to, host:port or unix:/path; nothing else may reach it")
	f.StringVar(&o.openAddress, "open-address", "", "where anybody may publish anything; loopback only")
	f.StringVar(&o.adminAddress, "admin-address", ":9090", "health, metrics and administration")
	f.StringVar(&o.config.MeshProxyURL, "mesh-proxy-url", "", "HTTP proxy of the sidecar for pushes into the mesh; empty where traffic is captured")
	f.StringVar(&o.config.TrustDomain, "trust-domain", "", "trust domain of the mesh (default cluster.local)")
	f.StringSliceVar(&o.config.MeshPublishers, "mesh-publisher", nil, "SPIFFE ID that may publish any source; repeatable")
	f.StringSliceVar(&o.targets.Allow, "allow-target", nil, "CIDR, host or host:port that sink URIs may name besides public addresses; repeatable")
	f.StringSliceVar(&o.targets.ServiceCIDRs, "service-cidr", nil, "range of the cluster's Service addresses, allowed for sink URIs; repeatable")
	f.BoolVar(&o.config.LeaderElection, "leader-elect", true, "let one of several replicas dispatch")
	f.DurationVar(&o.config.DrainTimeout, "drain-timeout", 0, "how long requests and pushes in flight may take at the stop (default 15s)")
	f.StringVar(&o.kubeconfig, "kubeconfig", "", "kubeconfig file (default $KUBECONFIG, or the pod's service account)")
	f.StringVar(&o.log.Level, "log-level", "info", "debug, info, warn or error")
	f.StringVar(&o.log.Format, "log-format", "json", "json or text")
	return cmd
}

// fromEnv sets the flags the command line did not.
func fromEnv(flags *pflag.FlagSet, lookupEnv func(string) (string, bool)) error {
	var errs []error
	flags.VisitAll(func(f *pflag.Flag) {
		name := envPrefix + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		if value, ok := lookupEnv(name); ok && !f.Changed {
			if err := flags.Set(f.Name, value); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", name, err))
			}
		}
	})
	return errors.Join(errs...)
}

func run(ctx context.Context, stderr io.Writer, o *options) error {
	log, err := telemetry.Logger(stderr, o.log)
	if err != nil {
		return err
	}
	o.config.Log = log
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
	log.Info("event bus starts", "nats", o.config.Stream.Servers())
	return bus.Run(ctx)
}
