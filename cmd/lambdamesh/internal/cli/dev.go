package cli

import (
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"

	"github.com/spf13/cobra"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/lambdamesh/lambdamesh/cmd/lambdamesh/internal/dev"
	"github.com/lambdamesh/lambdamesh/cmd/lambdamesh/internal/localkube"
	"github.com/lambdamesh/lambdamesh/meshconfig/translate"
	"github.com/lambdamesh/lambdamesh/pkg/telemetry"
)

func newDevCommand(g *globals) *cobra.Command {
	cfg := dev.DefaultConfig()
	var logs telemetry.LogConfig
	cmd := &cobra.Command{
		Use:   "dev [--apply PATH]...",
		Short: "Run the whole mesh on this machine",
		Long: `dev starts a Kubernetes API server with etcd, an embedded JetStream broker, the
controllers, the ADS server, the gateway, the event bus, the connector, and a
node that runs lambdas as processes. It needs no container engine, no cluster
and no root, and listens on loopback only unless told otherwise.

Ctrl-C stops all of it and keeps the data; the next start goes on with it.`,
		Example: `  lambdamesh dev --apply examples/commerce
  lambdamesh dev --data-dir /tmp/two --gateway-address 127.0.0.1:0 --gateway-tls-address 127.0.0.1:0 \
    --eventbus-address 127.0.0.1:0 --eventbus-admin-address 127.0.0.1:0 --connector-address 127.0.0.1:0`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg.DataDir = g.dataDir
			if cfg.BinDir == "" {
				cfg.BinDir = localkube.DefaultBinDir()
			}
			if err := cfg.Validate(); err != nil {
				return usageError{err}
			}
			cfg.Out = cmd.OutOrStdout()
			log, err := telemetry.Logger(cmd.ErrOrStderr(), logs)
			if err != nil {
				return usageError{err}
			}
			cfg.Log = log
			// controller-runtime writes what has no logger of its own to a global one.
			ctrl.SetLogger(telemetry.Logr(log))
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			return dev.Run(ctx, cfg)
		},
	}
	f := cmd.Flags()
	f.StringArrayVar(&cfg.Apply, "apply", nil, "YAML file or directory (`path`) to apply when all is up; repeatable")
	f.StringVar(&cfg.GatewayAddress, "gateway-address", cfg.GatewayAddress, "where the gateway serves HTTP")
	f.StringVar(&cfg.GatewayTLSAddress, "gateway-tls-address", cfg.GatewayTLSAddress, "where the gateway serves HTTPS")
	f.StringVar(&cfg.EventBusAddress, "eventbus-address", cfg.EventBusAddress, "where anybody on this machine may publish events")
	f.StringVar(&cfg.EventBusAdminAddress, "eventbus-admin-address", cfg.EventBusAdminAddress, "the event bus's admin port")
	f.StringVar(&cfg.ConnectorAddress, "connector-address", cfg.ConnectorAddress, "where third-party systems reach the connector")
	f.StringVar(&cfg.XDSAddress, "xds-address", cfg.XDSAddress, "the ADS server")
	f.StringVar(&cfg.KubernetesAddress, "kubernetes-address", cfg.KubernetesAddress, "the Kubernetes API server")
	f.StringVar(&cfg.UnownedSources, "unowned-sources", cfg.UnownedSources, "events of a source that neither a workload nor an Application owns: open to every namespace, or refuse")
	f.StringToIntVar(&cfg.Limits, "limit", nil, "what APIRules may take of the gateway, such as `apirule.matchers=8192` (default "+translate.Limits{}.String()+"); repeatable")
	f.StringArrayVar(&cfg.AllowTargets, "allow-target", nil, "`target` (CIDR, host or host:port) that sinks, jwksUri and targetUrl may point at besides public addresses; repeatable")
	f.StringVar(&cfg.Proxy, "proxy", cfg.Proxy, "data plane: embedded")
	f.StringVar(&cfg.BinDir, "bin-dir", "", fmt.Sprintf("where kube-apiserver, etcd and kube-controller-manager are (default %s)",
		filepath.Join("$LAMBDAMESH_CACHE", "kubernetes", "VERSION", runtime.GOOS+"-"+runtime.GOARCH)))
	f.StringVar(&logs.Level, "log-level", "warn", "debug, info, warn or error")
	f.StringVar(&logs.Format, "log-format", "text", "text or json")
	return cmd
}
