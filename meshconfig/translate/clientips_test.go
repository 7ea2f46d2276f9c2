package translate_test

import (
	"testing"

	"github.com/stretchr/testify/require"
	istionetworking "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lambdamesh/lambdamesh/meshconfig/translate"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

func TestAGatewayWhoseClientsAreNotClearServesNothing(t *testing.T) {
	for name, tt := range map[string]struct {
		annotations map[string]string
		served      bool
	}{
		"nothing said":          {nil, true},
		"two proxies":           {map[string]string{v1alpha1.AnnotationTrustedProxies: "2"}, true},
		"PROXY protocol":        {map[string]string{v1alpha1.AnnotationProxyProtocol: "v2"}, true},
		"no number of proxies":  {map[string]string{v1alpha1.AnnotationTrustedProxies: "one"}, false},
		"less than none":        {map[string]string{v1alpha1.AnnotationTrustedProxies: "-1"}, false},
		"more than there are":   {map[string]string{v1alpha1.AnnotationTrustedProxies: "17"}, false},
		"another version":       {map[string]string{v1alpha1.AnnotationProxyProtocol: "v1"}, false},
		"a word for it or none": {map[string]string{v1alpha1.AnnotationProxyProtocol: "true"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			g := &networkingv1.Gateway{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "g", Annotations: tt.annotations}}
			g.Spec.Servers = []*istionetworking.Server{{Port: &istionetworking.Port{Number: 80, Name: "http", Protocol: "HTTP"}, Hosts: []string{"*/*"}}}
			mesh, problems := translate.Translate(translate.Snapshot{Gateways: []*networkingv1.Gateway{g}})
			require.Equal(t, tt.served, len(mesh.Gateways[0].Servers) == 1)
			require.Equal(t, tt.served, len(problems) == 0)
			for _, p := range problems {
				require.Contains(t, p.Field, "metadata.annotations[lambdamesh.dev/")
			}
		})
	}
}
