// Command pilot-agent is Istio's agent, which runs beside each proxy, of the
// version in this module's go.mod.
package main

import (
	"fmt"
	"os"

	"istio.io/api/mesh/v1alpha1"
	"istio.io/istio/pilot/cmd/pilot-agent/app"
	istioagent "istio.io/istio/pkg/istio-agent"
	"istio.io/istio/pkg/security"
	"istio.io/istio/security/pkg/nodeagent/sds"
)

func main() {
	secrets := func(o *security.Options, s security.SecretManager, p *v1alpha1.PrivateKeyProvider) istioagent.SDSService {
		return sds.NewServer(o, s, p)
	}
	if err := app.NewRootCommand(secrets).Execute(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
