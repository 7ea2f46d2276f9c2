// Command proxy is the data plane of a mesh without Istio: the gateway, and the
// sidecar of a pod. It has Envoy's command line and reads Envoy's bootstrap, so
// that a manifest starts either of the two.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/lambdamesh/lambdamesh/pkg/config"
)

// version is set by the build.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := command(os.LookupEnv).ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "proxy:", err)
		os.Exit(1)
	}
}

const envPrefix = "LAMBDAMESH_PROXY_"

func command(lookupEnv func(string) (string, bool)) *cobra.Command {
	o := &options{}
	cmd := &cobra.Command{
		Use:   "proxy",
		Short: "Be a gateway or a sidecar of the mesh, with Envoy's command line and bootstrap",
		Long: `proxy does what an Envoy with the same bootstrap does: it shows its token to the
control plane, or asks an agent beside it to, and is given everything else over
ADS. What of a bootstrap it does not do it refuses by name; Envoy's other flags
are unknown to it.

The admin address, and listeners of the bootstrap that lead to it, answer /ready
(200 when the first configuration is served, 503 while it drains) and
/stats/prometheus. For Istio's agent the admin address answers GET /stats too,
with its state and how many configurations came, and POST
/drain_listeners?graceful, which lets answers end connections. SIGTERM drains:
requests in flight are finished within --drain-time-s.

Every flag can be set by an environment variable too: ` + envPrefix + `LOG_LEVEL for
--log-level.`,
		Example: `  proxy --config-path /etc/envoy/envoy.yaml --service-cluster gateway \
    --service-node gateway~lambdamesh-system~gateway~$POD_NAME --drain-time-s 30`,
		Version:       version,
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		PreRunE:       func(cmd *cobra.Command, _ []string) error { return config.FromEnv(cmd.Flags(), envPrefix, lookupEnv) },
		RunE:          func(cmd *cobra.Command, _ []string) error { return run(cmd.Context(), cmd.ErrOrStderr(), o) },
	}
	f := cmd.Flags()
	f.StringVarP(&o.configPath, "config-path", "c", "", "bootstrap file (envoy.config.bootstrap.v3, YAML or JSON)")
	f.StringVar(&o.configYAML, "config-yaml", "", "bootstrap as text, merged into that of --config-path")
	f.StringVar(&o.cluster, "service-cluster", "", "what the node is a part of; told in the log")
	f.StringVar(&o.node, "service-node", "", "node id, which says what the control plane serves: gateway~<namespace>~<name>~<instance> or pod~<namespace>~<name>")
	f.Uint32Var(&o.drainSeconds, "drain-time-s", 600, "how many seconds requests may take to end when the proxy stops or a listener goes")
	f.IntVar(&o.concurrency, "concurrency", 0, "how many threads work at once (default: as many as there is CPU)")
	f.StringVar(&o.drainStrategy, "drain-strategy", "gradual", "gradual or immediate; connections end with their next answer, which is the latter")
	f.StringVar(&o.ipVersion, "local-address-ip-version", "v4", "v4 or v6; addresses are those of the bootstrap")
	f.StringVar(&o.componentLevels, "component-log-level", "", "of Envoy's components; has no effect here")
	f.Uint32Var(&o.flushInterval, "file-flush-interval-msec", 10000, "of Envoy's access logs; has no effect here")
	f.BoolVar(&o.noHotRestart, "disable-hot-restart", true, "there is none here")
	f.BoolVar(&o.allowUnknown, "allow-unknown-static-fields", false, "fields that Envoy's API does not have (yet) are ignored in the bootstrap; those that it has and the proxy does not do are refused all the same")
	f.BoolVar(&o.skipDeprecated, "skip-deprecated-logs", false, "of Envoy's log; has no effect here")
	f.StringVarP(&o.logLevel, "log-level", "l", "info", "trace, debug, info, warning, error, critical or off")
	f.StringVar(&o.logFormat, "log-format", "json", "json or text")
	return cmd
}
