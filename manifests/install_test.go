package manifests_test

import (
	"slices"
	"testing"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	credentialinjectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/credential_injector/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	upstreamcodecv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/upstream_codec/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	genericv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/http/injected_credentials/generic/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/yaml"

	"github.com/lambdamesh/lambdamesh/meshconfig/members"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/sidecar"
)

func TestEveryWorkloadSurvivesADrainAndTellsItsHealth(t *testing.T) {
	for _, dir := range kustomizations() {
		objects := render(t, dir)
		for _, w := range workloads(t, objects) {
			t.Run(dir+"/"+w.Name, func(t *testing.T) {
				require.Greater(t, w.Spec.Replicas, int32(1), "one replica is none during a drain")
				pod := labels.Set(w.Spec.Template.Labels)
				require.True(t, slices.ContainsFunc(kinds(objects, "PodDisruptionBudget"), func(o *unstructured.Unstructured) bool {
					return selects(t, into[policyv1.PodDisruptionBudget](t, o).Spec.Selector, pod)
				}), "no PodDisruptionBudget")
				require.True(t, slices.ContainsFunc(kinds(objects, "NetworkPolicy"), func(o *unstructured.Unstructured) bool {
					policy := into[networkingv1.NetworkPolicy](t, o)
					return len(policy.Spec.PodSelector.MatchLabels) > 0 && selects(t, &policy.Spec.PodSelector, pod)
				}), "no NetworkPolicy lets anything through to or from it")

				for _, c := range w.Spec.Template.Spec.Containers {
					require.NotEmpty(t, c.Resources.Requests.Cpu().String())
					require.False(t, c.Resources.Requests.Memory().IsZero(), "no memory request")
					require.False(t, c.Resources.Limits.Memory().IsZero(), "no memory limit")
					if c.Image == "auto" {
						continue // injection brings image and probes
					}
					require.NotNil(t, c.ReadinessProbe, "no readiness probe")
					require.NotNil(t, c.LivenessProbe, "no liveness probe")
					require.NotNil(t, c.StartupProbe, "no startup probe")
					require.Regexp(t, `:[a-z-]*v?\d+\.\d+`, c.Image, "an image without a version")
				}
			})
		}
	}
}

func selects(t *testing.T, selector *metav1.LabelSelector, pod labels.Set) bool {
	t.Helper()
	s, err := metav1.LabelSelectorAsSelector(selector)
	require.NoError(t, err)
	return s.Matches(pod)
}

func TestServicesSelectPodsByPortsTheyHave(t *testing.T) {
	for _, dir := range kustomizations() {
		objects := render(t, dir)
		for _, o := range kinds(objects, "Service") {
			service := into[corev1.Service](t, o)
			t.Run(dir+"/"+service.Name, func(t *testing.T) {
				selected := 0
				for _, w := range workloads(t, objects) {
					if !labels.SelectorFromSet(service.Spec.Selector).Matches(labels.Set(w.Spec.Template.Labels)) {
						continue
					}
					selected++
					for _, port := range service.Spec.Ports {
						require.True(t, slices.ContainsFunc(ports(w), func(p corev1.ContainerPort) bool {
							return port.TargetPort == intstr.FromString(p.Name)
						}), "%s has no port %s", w.Name, port.TargetPort.String())
					}
				}
				require.Equal(t, 1, selected, "workloads selected")
			})
		}
	}
}

// ports are those of the containers and the sidecars.
func ports(w workload) []corev1.ContainerPort {
	var all []corev1.ContainerPort
	for _, c := range slices.Concat(w.Spec.Template.Spec.Containers, w.Spec.Template.Spec.InitContainers) {
		all = append(all, c.Ports...)
	}
	return all
}

func TestWellKnownServicesAndAccountsAreThere(t *testing.T) {
	for _, dir := range []string{"overlays/istio", "overlays/envoy"} {
		t.Run(dir, func(t *testing.T) {
			objects := render(t, dir)
			var names []string
			for _, o := range kinds(objects, "ServiceAccount", "Service") {
				require.Equal(t, v1alpha1.SystemNamespace, o.GetNamespace())
				names = append(names, o.GetKind()+" "+o.GetName())
			}
			require.Subset(t, names, []string{
				"ServiceAccount " + v1alpha1.ServiceAccountControlPlane, "ServiceAccount " + v1alpha1.ServiceAccountGateway,
				"ServiceAccount " + v1alpha1.ServiceAccountEventBus, "ServiceAccount " + v1alpha1.ServiceAccountConnector,
				"Service " + v1alpha1.ServiceEventBus, "Service " + v1alpha1.ServiceConnectorOutbound,
			})
			for _, o := range kinds(objects, "Service") {
				if o.GetName() != v1alpha1.ServiceEventBus && o.GetName() != v1alpha1.ServiceConnectorOutbound {
					continue
				}
				port := into[corev1.Service](t, o).Spec.Ports[0]
				require.Equal(t, v1alpha1.ServiceHTTPPort, port.Name)
				require.Equal(t, int32(v1alpha1.ServicePort), port.Port)
			}
		})
	}
}

// pairingRole makes and removes Secrets where TokenRequests are; that it is only
// those of one type, TestTheConnectorMakesSecretsOfPairingOnly shows.
const pairingRole = "lambdamesh-connector"

func TestRolesGrantNothingWholesale(t *testing.T) {
	for _, dir := range kustomizations() {
		for _, o := range kinds(render(t, dir), "ClusterRole", "Role") {
			for _, rule := range into[rbacv1.Role](t, withoutAggregation(o)).Rules {
				require.NotContains(t, slices.Concat(rule.APIGroups, rule.Resources, rule.Verbs), "*", name(o))
				require.Empty(t, intersect(rule.Verbs, "escalate", "bind", "impersonate"), name(o))
				if slices.Contains(rule.Resources, "secrets") && o.GetKind() == "ClusterRole" && o.GetName() != pairingRole {
					require.Empty(t, intersect(rule.Verbs, "create", "update", "patch", "delete"), "%s changes Secrets of every namespace", name(o))
				}
				require.Empty(t, intersect(rule.Resources, "pods/exec", "nodes", "nodes/proxy", "serviceaccounts/token"), name(o))
			}
		}
	}
}

// A ClusterRole is a Role with one field more.
func withoutAggregation(o *unstructured.Unstructured) *unstructured.Unstructured {
	o = o.DeepCopy()
	delete(o.Object, "aggregationRule")
	return o
}

func intersect(all []string, some ...string) []string {
	return slices.DeleteFunc(slices.Clone(all), func(s string) bool { return !slices.Contains(some, s) })
}

func TestSystemNamespaceDeniesTrafficByDefault(t *testing.T) {
	for _, dir := range kustomizations() {
		require.True(t, slices.ContainsFunc(kinds(render(t, dir), "NetworkPolicy"), func(o *unstructured.Unstructured) bool {
			spec := into[networkingv1.NetworkPolicy](t, o).Spec
			return len(spec.PodSelector.MatchLabels) == 0 && len(spec.PodSelector.MatchExpressions) == 0 && len(spec.PolicyTypes) == 2 &&
				len(spec.Ingress) == 0 && len(spec.Egress) == 0
		}), dir)
	}
}

// A data plane's metrics tell who calls whom; they are at the port of its readiness.
func TestMetricsOfDataPlanesAreForLabeledNamespaces(t *testing.T) {
	for _, dir := range kustomizations() {
		for _, o := range kinds(render(t, dir), "NetworkPolicy") {
			for _, rule := range into[networkingv1.NetworkPolicy](t, o).Spec.Ingress {
				labeled := len(rule.From) > 0
				for _, peer := range rule.From {
					labeled = labeled && peer.NamespaceSelector != nil && peer.NamespaceSelector.MatchLabels["lambdamesh.dev/metrics"] == "true"
				}
				for _, port := range rule.Ports {
					if number := port.Port.IntValue(); number == sidecar.ReadyPort || number == 15090 {
						require.True(t, labeled, "%s opens %d to others", name(o), number)
					}
				}
			}
		}
	}
}

func TestEnvoyBootstrapIsValid(t *testing.T) {
	data, err := members.ConfigMaps{XDSAddress: "controlplane.lambdamesh-system.svc:15010"}.Data()
	require.NoError(t, err)
	var bootstrap bootstrapv3.Bootstrap
	parse(t, data[sidecar.BootstrapFile], &bootstrap)
	require.NoError(t, bootstrap.ValidateAll())
	for _, cluster := range bootstrap.GetStaticResources().GetClusters() {
		for _, packed := range cluster.GetTypedExtensionProtocolOptions() {
			var options httpv3.HttpProtocolOptions
			require.NoError(t, packed.UnmarshalTo(&options))
			require.NoError(t, options.ValidateAll())
			for _, filter := range options.GetHttpFilters() {
				message, err := filter.GetTypedConfig().UnmarshalNew()
				require.NoError(t, err)
				if injector, ok := message.(*credentialinjectorv3.CredentialInjector); ok {
					require.NoError(t, injector.ValidateAll())
					var generic genericv3.Generic
					require.NoError(t, injector.GetCredential().GetTypedConfig().UnmarshalTo(&generic))
					require.NoError(t, generic.ValidateAll())
				}
			}
		}
	}

	// Envoy's default refuses the regular expression that every host begins with.
	runtime := bootstrap.GetLayeredRuntime().GetLayers()[0].GetStaticLayer().GetFields()
	require.InDelta(t, 32768, runtime["re2.max_program_size.error_level"].GetNumberValue(), 0)

	// The admin interface can stop the proxy and tells its secrets' names.
	require.Equal(t, "127.0.0.1", bootstrap.GetAdmin().GetAddress().GetSocketAddress().GetAddress())

	var token discoveryv3.DiscoveryResponse
	parse(t, data[sidecar.SecretFile], &token)
	require.Len(t, token.GetResources(), 1)
	var secret tlsv3.Secret
	require.NoError(t, token.GetResources()[0].UnmarshalTo(&secret))
	require.NoError(t, secret.ValidateAll())
}

// The messages that the bootstrap packs must be linked in to be read.
var _ = []proto.Message{&hcmv3.HttpConnectionManager{}, &routerv3.Router{}, &upstreamcodecv3.UpstreamCodec{}}

func parse(t *testing.T, text string, message proto.Message) {
	t.Helper()
	raw, err := yaml.YAMLToJSONStrict([]byte(text))
	require.NoError(t, err)
	require.NoError(t, protojson.Unmarshal(raw, message))
}
