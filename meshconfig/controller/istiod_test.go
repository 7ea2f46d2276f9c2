package controller_test

import (
	"fmt"
	"maps"
	"net/http"
	"os"
	"slices"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	istioapi "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/meshconfig/meshtest"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/process"
	"github.com/lambdamesh/lambdamesh/pkg/testkit"
)

func TestMain(m *testing.M) {
	process.WatcherMain()
	os.Exit(m.Run())
}

func gatewayIdentity() string {
	return v1alpha1.SPIFFEID(v1alpha1.DefaultTrustDomain, v1alpha1.SystemNamespace, v1alpha1.ServiceAccountGateway)
}

// A gateway that is the embedded proxy takes what istiod makes of our objects.
func TestTheEmbeddedProxyTakesWhatIstiodServes(t *testing.T) {
	meshtest.RequireIstiod(t)
	w := newWorld(t)
	relay, address := meshtest.NewRelay(t, meshtest.Istiod(t, w.config, ""), meshtest.GatewayNode(t, "gateway"), w.ca, gatewayIdentity())
	t.Cleanup(func() {
		for _, nack := range relay.Refused() {
			t.Errorf("the proxy refused %s", nack)
		}
	})
	w.service("orders", "an order")
	w.controlPlane(istioOnly)
	rule := toService("orders")
	rule.Path, rule.Methods = "/orders/{*}", []v1alpha1.HTTPMethod{"GET"}
	rule.Timeout, rule.Retries = &metav1.Duration{Duration: 5 * time.Second}, &v1alpha1.Retries{Attempts: 2}
	rule.Rewrite = &v1alpha1.Rewrite{Path: "/v1/orders"}
	rule.Request = &v1alpha1.HeaderEdits{SetHeaders: map[string]v1alpha1.HeaderValue{"x-from": "gateway"}, RemoveHeaders: []string{"x-secret"}}
	rule.Response = &v1alpha1.HeaderEdits{SetHeaders: map[string]v1alpha1.HeaderValue{"x-served": "yes"}, RemoveHeaders: []string{"server"}}
	w.create(keySecret(newIssuer(t).set))
	w.create(nodeLambda("greet"))
	w.create(lambdaPod("greet", "greet-0", true))
	w.create(httpService("greet", map[string]string{v1alpha1.LabelLambda: "greet"}))
	closed := toLambda("greet")
	closed.Path, closed.NoAuth = "/closed", nil
	closed.JWT = &v1alpha1.JWTAuth{Authentications: []v1alpha1.JWTAuthentication{{Issuer: "https://issuer.test", JWKSSecret: "keys"}}}
	orders := w.apiRule("orders", "orders", rule, closed)
	orders.Spec.CORS = &v1alpha1.CORSPolicy{AllowOrigins: []v1alpha1.OriginMatch{{Exact: new("https://shop.test")}}, AllowMethods: []v1alpha1.HTTPMethod{"GET"}}
	w.create(orders)
	gateway := w.gateway(address)

	gateway.requireStatus(http.StatusOK, "orders."+domain, "/orders/1")
	gateway.requireStatus(http.StatusNotFound, "orders."+domain, "/else")
	gateway.requireStatus(http.StatusBadRequest, "orders."+domain, "/orders/a%2fb")
	gateway.requireStatus(http.StatusUnauthorized, "orders."+domain, "/closed")
	gateway.requireStatus(http.StatusNotFound, "unknown."+domain, "/orders/1")
}

// Between a pod without a sidecar becoming ready and the control plane closing
// the rule istiod has told the gateway of the pod. WorkloadEntries without the
// label of the injector are such pods here: the control plane looks at pods only.
func TestIstiodSendsNoTokenToAPodWithoutSidecar(t *testing.T) {
	meshtest.RequireIstiod(t)
	w := newWorld(t)
	connection := meshtest.Istiod(t, w.config, "")
	w.create(keySecret(newIssuer(t).set))
	w.create(nodeLambda("greet"))
	w.create(lambdaPod("greet", "greet-0", true))
	w.service("greet", "whoever asks")
	greet := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "greet", Namespace: w.namespace}}
	require.NoError(t, w.client.Get(t.Context(), client.ObjectKeyFromObject(greet), greet))
	greet.Spec.Selector = map[string]string{v1alpha1.LabelLambda: "greet"}
	require.NoError(t, w.client.Update(t.Context(), greet))
	bare := &networkingv1.WorkloadEntry{}
	require.NoError(t, w.client.Get(t.Context(), client.ObjectKeyFromObject(greet), bare))
	bare.Labels[v1alpha1.LabelLambda] = "greet"
	require.NoError(t, w.client.Update(t.Context(), bare))
	// What an operator says about the host stays: istiod merges it with ours.
	host := "greet." + w.namespace + ".svc.cluster.local"
	w.create(&networkingv1.DestinationRule{
		ObjectMeta: metav1.ObjectMeta{Name: "operators"},
		Spec: istioapi.DestinationRule{Host: host, TrafficPolicy: &istioapi.TrafficPolicy{
			Tls:            &istioapi.ClientTLSSettings{Mode: istioapi.ClientTLSSettings_DISABLE},
			ConnectionPool: &istioapi.ConnectionPoolSettings{Http: &istioapi.ConnectionPoolSettings_HTTPSettings{Http2MaxRequests: 77}},
		}},
	})
	p := w.controlPlane(istioOnly)
	closed, open := toLambda("greet"), toLambda("greet")
	closed.Path, closed.NoAuth = "/closed", nil
	closed.JWT = &v1alpha1.JWTAuth{Authentications: []v1alpha1.JWTAuthentication{{Issuer: "https://issuer.test", JWKSSecret: "keys"}}}
	open.Path = "/open"
	rule := w.apiRule("greet", "greet", closed, open)
	w.create(rule)
	w.requireReady(rule)
	relay, address := meshtest.NewRelay(t, connection, meshtest.GatewayNode(t, "gateway"), w.ca, gatewayIdentity())
	gateway := w.gateway(address)

	const token = "Bearer of no worth"
	gateway.requireStatus(http.StatusOK, "greet."+domain, "/open", "Authorization", token) // the pod is there
	status, body, err := gateway.get("greet."+domain, "/closed", "Authorization", token)
	require.NoError(t, err)
	require.Equal(t, http.StatusServiceUnavailable, status, body)
	require.NotContains(t, body, "whoever asks")
	require.Empty(t, relay.Refused())

	clusters := clustersOf(t, connection)
	secured := clusters["outbound|80|lambdamesh-mtls|"+host]
	require.NotNil(t, secured, "istiod sends %v", slices.Collect(maps.Keys(clusters)))
	require.Empty(t, secured.GetTransportSocketMatches(), "no endpoint is spoken to in another way")
	var tls tlsv3.UpstreamTlsContext
	require.NoError(t, secured.GetTransportSocket().GetTypedConfig().UnmarshalTo(&tls))
	names := tls.GetCommonTlsContext().GetCombinedValidationContext().GetDefaultValidationContext().GetMatchSubjectAltNames() //nolint:staticcheck // what istiod fills
	require.Len(t, names, 1)
	require.Equal(t, v1alpha1.SPIFFEID(v1alpha1.DefaultTrustDomain, w.namespace, "greet"), names[0].GetExact())
	for _, cluster := range []*clusterv3.Cluster{secured, clusters["outbound|80||"+host]} {
		require.EqualValues(t, 77, cluster.GetCircuitBreakers().GetThresholds()[0].GetMaxRequests().GetValue(), "%s: the operator's DestinationRule holds", cluster.GetName())
	}
	require.Nil(t, clusters["outbound|80||"+host].GetTransportSocket(), "and what it says about TLS for everything else")

	// It is repaired and pruned as our other objects are.
	ours := &networkingv1.DestinationRule{ObjectMeta: metav1.ObjectMeta{Name: "lambda-greet", Namespace: w.namespace}}
	require.NoError(t, w.client.Get(t.Context(), client.ObjectKeyFromObject(ours), ours))
	ours.Spec.Subsets[0].TrafficPolicy.Tls.Mode = istioapi.ClientTLSSettings_DISABLE
	require.NoError(t, w.client.Update(t.Context(), ours, client.FieldOwner("somebody")))
	testkit.Eventually(t, patience, func() error {
		if err := w.client.Get(t.Context(), client.ObjectKeyFromObject(ours), ours); err != nil {
			return err
		}
		if mode := ours.Spec.GetSubsets()[0].GetTrafficPolicy().GetTls().GetMode(); mode != istioapi.ClientTLSSettings_ISTIO_MUTUAL {
			return fmt.Errorf("its mode is %s", mode)
		}
		return nil
	}, "the DestinationRule is repaired")
	w.delete(rule)
	testkit.Eventually(t, patience, func() error {
		if err := w.client.Get(t.Context(), client.ObjectKeyFromObject(ours), ours); !apierrors.IsNotFound(err) {
			return fmt.Errorf("it is there: %w", err)
		}
		return nil
	}, "the DestinationRule is pruned")
	p.stop()
}

// clustersOf a gateway, by name.
func clustersOf(t *testing.T, connection grpc.ClientConnInterface) map[string]*clusterv3.Cluster {
	t.Helper()
	all := map[string]*clusterv3.Cluster{}
	for _, packed := range meshtest.Fetch(t, connection, meshtest.GatewayNode(t, "gateway"), resource.ClusterType) {
		var cluster clusterv3.Cluster
		require.NoError(t, packed.UnmarshalTo(&cluster))
		all[cluster.GetName()] = &cluster
	}
	return all
}
