// Command controlplane is the control plane of a cluster: the controllers of
// APIRules and Lambdas and, where the mesh is ours, the ADS server that programs
// its Envoys.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/lambdamesh/lambdamesh/meshconfig/translate"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/config"
	"github.com/lambdamesh/lambdamesh/pkg/process"
)

// version is set by the build.
var version = "dev"

func main() {
	process.WatcherMain() // builds start programs
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := command(os.LookupEnv).ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "controlplane:", err)
		os.Exit(1)
	}
}

const envPrefix = "LAMBDAMESH_CONTROLPLANE_"

func command(lookupEnv func(string) (string, bool)) *cobra.Command {
	o := &options{}
	cmd := &cobra.Command{
		Use:   "controlplane",
		Short: "Expose lambdas through the mesh and deploy them",
		Long: `controlplane turns APIRules into what a mesh obeys and Lambdas into Deployments.

With --mesh=istio it writes VirtualServices, DestinationRules, AuthorizationPolicies,
RequestAuthentications and PeerAuthentications for istiod. With --mesh=envoy it
programs Envoys itself, over ADS at --xds-address, and issues the certificates
of workloads; their root lies in the Secret lambdamesh-ca, created once.

With --make-secret it makes the Secrets of an installation, certificates and the
credentials of NATS, and renews what it made; what somebody else has put there, or
changed, is left alone.

One replica, the leader, writes to the API server; all serve ADS. /healthz,
/readyz and /metrics are at --admin-address. SIGTERM drains and gives the
leadership back.

Every flag can be set by an environment variable too: ` + envPrefix + `XDS_ADDRESS
for --xds-address.`,
		Example: `  controlplane --mesh=istio
  controlplane --mesh=envoy --xds-address :15010 --allow-target issuer.corp.example:443`,
		Version:       version,
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		PreRunE:       func(cmd *cobra.Command, _ []string) error { return config.FromEnv(cmd.Flags(), envPrefix, lookupEnv) },
		RunE:          func(cmd *cobra.Command, _ []string) error { return run(cmd.Context(), cmd.ErrOrStderr(), o) },
	}
	f := cmd.Flags()
	f.StringVar(&o.mesh, "mesh", "istio", "who programs the data plane: istio, or envoy for Envoys of our own")
	f.StringVar(&o.meshConfig, "istio-mesh-config", "istio-system/istio", "namespace/name of the ConfigMap with Istio's MeshConfig; its pathNormalization is checked; --mesh=istio only")
	f.StringVar(&o.xdsAddress, "xds-address", ":15010", "where data planes connect (gRPC over TLS); --mesh=envoy only")
	f.StringSliceVar(&o.xdsServerNames, "xds-server-name", nil, "name in the certificate of the ADS server; repeatable (default: those of the Service controlplane, and localhost)")
	f.StringVar(&o.adminAddress, "admin-address", ":9090", "health and metrics")
	f.BoolVar(&o.leaderElection, "leader-elect", true, "let one of several replicas write")
	f.StringVar(&o.namespace, "namespace", v1alpha1.SystemNamespace, "namespace of the system: leases, the CA, event bus and connector")
	f.StringVar(&o.trustDomain, "trust-domain", v1alpha1.DefaultTrustDomain, "trust domain of the mesh's identities")
	f.StringSliceVar(&o.targets.Allow, "allow-target", nil, "CIDR, host or host:port that a jwksUri, a git source, a WorkloadEntry or an EndpointSlice written by hand may name besides public addresses; repeatable")
	f.StringSliceVar(&o.targets.ServiceCIDRs, "service-cidr", nil, "range of the cluster's Service addresses, allowed for a jwksUri; repeatable")
	f.StringToIntVar(&o.limits, "limit", nil, "what APIRules may take of gateways: <apirule|namespace|gateway>.<bytes|matchers|keysets|hosts>=<number>, or another of these; repeatable (default "+translate.Limits{}.String()+")")
	f.StringVar(&o.domain, "default-gateway-domain", "", "domain of the default Gateway, which is made for it and then yours to edit; empty: none is made")
	f.StringSliceVar(&o.secrets, "make-secret", nil, "Secret of the installation to make where it is missing, and to renew: nats, nats-tls, eventbus-tls, gateway-tls, connector-tls, connector-ca or webhooks-tls; repeatable")
	f.DurationVar(&o.overlap, "rotation-overlap", 24*time.Hour, "how long old and new are both good in each step of replacing the mesh's CA or NATS's credentials; less than the default leaves members behind that were away for longer")
	f.StringVar(&o.images.Prefix, "runtime-image-prefix", "ghcr.io/lambdamesh/runtime-", "images with the language are <prefix><runtime>:<tag>; empty: the official node and python images")
	// As `make push` tags them: a '+' may stand in versions and not in tags.
	f.StringVar(&o.images.Tag, "runtime-image-tag", strings.ReplaceAll(version, "+", "-"), "tag of those images; <version>-<tag> for lambdas that name a version of the language")
	f.StringVar(&o.buildDir, "build-dir", filepath.Join(os.TempDir(), "lambdamesh-builds"), "directory in which lambdas are built; what is in it can be made again")
	f.DurationVar(&o.gitPoll, "git-poll-interval", 30*time.Second, "how often the git repositories of lambdas are asked for newer commits")
	o.sidecars.flags(f)
	f.StringVar(&o.kubeconfig, "kubeconfig", "", "kubeconfig file (default $KUBECONFIG, or the pod's service account)")
	f.StringVar(&o.log.Level, "log-level", "info", "debug, info, warn or error")
	f.StringVar(&o.log.Format, "log-format", "json", "json or text")
	return cmd
}
