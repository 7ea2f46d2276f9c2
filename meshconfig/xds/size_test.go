package xds_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/lambdamesh/lambdamesh/meshconfig/ir"
	"github.com/lambdamesh/lambdamesh/meshconfig/xds"
)

// What is reckoned with is never less than what is written, nor many times more.
func TestTheSizeOfADestinationIsWhatIsWritten(t *testing.T) {
	long := strings.Repeat("x", 63)
	for name, d := range map[string]ir.Destination{
		"plain":      {Namespace: "a", Name: "b", Port: 80},
		"member":     {Namespace: "shop", Name: "orders", Port: 80, Identities: []string{"spiffe://cluster.local/ns/shop/sa/orders"}},
		"long names": {Namespace: long, Name: long, Port: 65535, Identities: []string{"spiffe://cluster.local/ns/" + long + "/sa/" + long}},
		"many identities": {Namespace: "shop", Name: "orders", Port: 80, Identities: func() (all []string) {
			for i := range 16 {
				all = append(all, fmt.Sprintf("spiffe://cluster.local/ns/shop/sa/%02d%s", i, strings.Repeat("s", 250)))
			}
			return all
		}()},
		"many endpoints": {Namespace: "shop", Name: "orders", Port: 80, Endpoints: func() (all []ir.Endpoint) {
			for i := range 1000 {
				all = append(all, ir.Endpoint{Address: fmt.Sprintf("2001:db8:aaaa:bbbb:cccc:dddd:eeee:%04x", i), Port: 65535})
			}
			return all
		}()},
	} {
		t.Run(name, func(t *testing.T) {
			mesh := &ir.Mesh{TrustDomain: "cluster.local", Destinations: []*ir.Destination{&d}, Sidecars: []*ir.Sidecar{{
				Node: "n.shop", Namespace: "shop", ServiceAccount: "n", Egress: []ir.Egress{{Bind: "127.0.0.1", Port: 1, Destinations: []string{d.Key()}}},
			}}}
			resources, err := xds.SidecarResources(mesh, "n.shop")
			require.NoError(t, err)
			largest := 0
			for _, c := range resources.Clusters {
				if strings.HasPrefix(c.GetName(), "outbound|") {
					largest = max(largest, proto.Size(c))
				}
			}
			for _, e := range resources.Endpoints {
				largest = max(largest, proto.Size(e))
			}
			t.Log(largest, d.Size())
			require.NotZero(t, largest)
			// A resource in a response is an Any with its type.
			require.LessOrEqual(t, largest+80, d.Size())
			require.LessOrEqual(t, d.Size(), 4*largest+1024)
		})
	}
}
