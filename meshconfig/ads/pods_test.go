package ads_test

import (
	"context"
	"strings"
	"testing"

	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"

	"github.com/lambdamesh/lambdamesh/meshconfig/ads"
)

// podTokens are "<namespace>/<service account>/<pod>/<uid>".
type podTokens struct{}

func (podTokens) Authenticate(_ context.Context, token string) (ads.Identity, error) {
	parts := strings.Split(token, "/")
	return ads.Identity{Namespace: parts[0], ServiceAccount: parts[1], Pod: parts[2], PodUID: parts[3]}, nil
}

// A pod's node is for who shows the token of that pod, and for nobody else who
// runs as the same service account.
func TestAPodIsNobodyButItself(t *testing.T) {
	looked := make(chan string, 100)
	f := start(t, func(c *ads.Config) {
		c.Authenticator = podTokens{}
		c.NodeIdentity = func(_ context.Context, id string) (ads.Identity, bool) {
			looked <- id
			known := map[string]ads.Identity{
				"pod~shop~orders-1": {Namespace: "shop", ServiceAccount: "orders", Pod: "orders-1", PodUID: "u-1"},
				node:                {Namespace: "shop", ServiceAccount: "orders"},
			}
			identity, ok := known[id]
			return identity, ok
		}
	})
	for name, test := range map[string]struct {
		token, node string
		ok          bool
	}{
		"itself":                            {"shop/orders/orders-1/u-1", "pod~shop~orders-1", true},
		"another pod of its account":        {"shop/orders/orders-2/u-2", "pod~shop~orders-1", false},
		"a pod of the name before":          {"shop/orders/orders-1/u-0", "pod~shop~orders-1", false},
		"another account":                   {"shop/tax/orders-1/u-1", "pod~shop~orders-1", false},
		"another namespace":                 {"evil/orders/orders-1/u-1", "pod~shop~orders-1", false},
		"no pod":                            {"shop/orders//", "pod~shop~orders-1", false},
		"a pod that there is not":           {"shop/orders/orders-9/u-9", "pod~shop~orders-9", false},
		"a WorkloadEntry, whatever the pod": {"shop/orders/orders-2/u-2", node, true},
	} {
		t.Run(name, func(t *testing.T) {
			for len(looked) > 0 {
				<-looked
			}
			c := f.connect(t, test.node, "authorization", "Bearer "+test.token)
			c.request(resource.SecretType, ads.SecretRoot)
			if !test.ok {
				c.refused(codes.PermissionDenied)
				if !strings.Contains(test.token, strings.TrimPrefix(test.node, "pod~shop~")) {
					require.Empty(t, looked, "whose pod it is not is not looked up for")
				}
				return
			}
			target, _ := ads.TargetOf(test.node)
			_, err := f.SetResources(target, ads.Resources{})
			require.NoError(t, err)
			require.Len(t, c.next(resource.SecretType).GetResources(), 1)
		})
	}
}
