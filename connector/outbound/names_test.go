package outbound_test

import (
	"context"
	"net/http"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/connector/outbound"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/targets"
)

// oneAddress is what every name stands for.
type oneAddress struct{ netip.Addr }

func (a oneAddress) LookupNetIP(context.Context, string, string) ([]netip.Addr, error) {
	return []netip.Addr{a.Addr}, nil
}

// What a name stands for is judged when it is dialed, for targets as for the URLs
// of tokens: DNS is whoever's the name is.
func TestNoNameLeadsToWhereNobodyMayCall(t *testing.T) {
	for _, address := range []string{"127.0.0.1", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "10.0.0.7", "169.254.169.254", "0.0.0.0"} {
		t.Run(address, func(t *testing.T) {
			w := newWorld(t, func(a *v1alpha1.Application) {
				port := a.Spec.Services[3].API.TargetURL[len("http://127.0.0.1"):]
				for i := range 4 {
					a.Spec.Services[i].API.TargetURL = "http://shop.example.com" + port
				}
				a.Spec.Services[0].API.Auth.OAuth2.TokenURL = "http://login.example.com" + port
				a.Spec.Services[1].API.Auth.CSRF = &v1alpha1.CSRFAuth{TokenURL: "http://shop.example.com" + port}
			})
			policy, err := targets.New(targets.Config{Resolver: oneAddress{netip.MustParseAddr(address)}})
			require.NoError(t, err)
			w.gateway.Config.Handler, err = outbound.New(outbound.Config{Objects: w.client, Targets: policy, TrustDomain: "cluster.local"})
			require.NoError(t, err)
			for service, title := range map[string]string{
				"open": "Target refused", "prices": "Target refused", "orders": "No credentials", "stock": "No credentials",
			} {
				response, body := w.get("/commerce/" + service + "/1")
				require.Equal(t, http.StatusBadGateway, response.StatusCode, body)
				require.Contains(t, body, title)
				require.Contains(t, body, "is refused")
			}
			require.Empty(t, w.commerce.got)
			require.Empty(t, w.commerce.tokenForm)
		})
	}
}
