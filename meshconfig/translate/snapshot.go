package translate

import (
	"cmp"
	"maps"
	"slices"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/lambdamesh/lambdamesh/meshconfig/ir"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/targets"
)

// Snapshot is all that a translation may depend on. Objects are read, never
// changed; their order does not matter.
type Snapshot struct {
	Settings Settings

	// MeshProblem tells people what the mesh itself lacks for paths to mean what
	// rules say; all rules are closed until it is empty.
	MeshProblem string

	APIRules            []*v1alpha1.APIRule
	Lambdas             []*v1alpha1.Lambda
	Subscriptions       []*v1alpha1.Subscription
	ApplicationBindings []*v1alpha1.ApplicationBinding

	// Pods of all namespaces, with what [NeededOfPod] keeps: they say whose an
	// address is.
	Pods []*corev1.Pod
	// Members are pods that have, or had, a sidecar of ours; others among them are
	// passed over.
	Members        []*corev1.Pod
	Services       []*corev1.Service
	EndpointSlices []*discoveryv1.EndpointSlice
	// Secrets that [SecretRefs] lists, as far as they exist.
	Secrets []*corev1.Secret

	Gateways        []*networkingv1.Gateway
	Sidecars        []*networkingv1.Sidecar
	WorkloadEntries []*networkingv1.WorkloadEntry

	// JWKS holds, by URI, what fetching the URIs of [JWKSURIs] gave. A URI that
	// is not in it counts as not fetched yet: unusable, with reason Pending.
	JWKS map[string]KeySetResult
}

// Settings are what an operator configures.
type Settings struct {
	// TrustDomain of workload identities; default [v1alpha1.DefaultTrustDomain].
	TrustDomain string
	// SystemNamespace of event bus and connector; default
	// [v1alpha1.SystemNamespace].
	SystemNamespace string
	// GatewayServiceAccount that the gateways' proxies run as; default
	// lambdamesh-system/gateway.
	GatewayServiceAccount types.NamespacedName
	// TokensAtSidecars: the sidecars of backends check tokens, not the gateway. A
	// rule with jwt is refused then unless its backends' pods have one.
	TokensAtSidecars bool
	// Lacks lists what none of the outputs carries; a rule that uses it is refused.
	Lacks []ir.Feature
	// AdvertisedPorts: where clients reach a Gateway server's port, when that is
	// another one (a load balancer's, or that of a local listener). Only the
	// URLs in a status depend on it.
	AdvertisedPorts map[uint32]uint32
	// Targets that endpoints which somebody wrote by hand may name, in
	// EndpointSlices and WorkloadEntries; default public addresses only.
	Targets *targets.Policy
	// Local: the whole mesh runs on one machine. Nobody gives pods addresses there,
	// so that all endpoints count as written by hand; and members of the mesh are
	// on loopback, where each must prove its identity.
	Local bool
	// Limits of APIRules; what is 0 has its default.
	Limits Limits
}

func (s Settings) withDefaults() Settings {
	s.TrustDomain = cmp.Or(s.TrustDomain, v1alpha1.DefaultTrustDomain)
	s.SystemNamespace = cmp.Or(s.SystemNamespace, v1alpha1.SystemNamespace)
	s.GatewayServiceAccount = cmp.Or(s.GatewayServiceAccount,
		types.NamespacedName{Namespace: s.SystemNamespace, Name: v1alpha1.ServiceAccountGateway})
	if s.Targets == nil {
		s.Targets = &targets.Policy{}
	}
	s.Limits = s.Limits.withDefaults()
	return s
}

func (s Settings) lacks(f ir.Feature) bool { return slices.Contains(s.Lacks, f) }

// KeySetResult is a fetched JWK Set, or why there is none. An old set and an
// error may come together: the set is used and the error reported.
type KeySetResult struct {
	// JSON of the set (RFC 7517); empty when there is none.
	JSON string
	// Err tells people why the last fetch failed; empty when it did not.
	Err string
}

// References lists what rules that are not too large, and Gateways, name and a
// snapshot must hold besides: Secrets with key sets, API keys and the certificates
// of TLS servers, and URIs of key sets. Both are sorted.
func References(settings Settings, rules []*v1alpha1.APIRule, gateways []*networkingv1.Gateway) (secrets []types.NamespacedName, jwksURIs []string) {
	refs, uris := map[types.NamespacedName]bool{}, map[string]bool{}
	for _, r := range withinBudgets(settings, rules) {
		for _, a := range authentications(r) {
			if a.JWKSSecret != "" {
				refs[secretOf(r, a.JWKSSecret)] = true
			}
			if a.JWKSURI != "" {
				uris[a.JWKSURI] = true
			}
		}
		for i := range r.Spec.Rules {
			if key := r.Spec.Rules[i].APIKey; key != nil {
				refs[secretOf(r, key.SecretName)] = true
			}
		}
	}
	for _, g := range gateways {
		for _, s := range g.Spec.GetServers() {
			if name := s.GetTls().GetCredentialName(); name != "" {
				refs[types.NamespacedName{Namespace: g.Namespace, Name: name}] = true
			}
		}
	}
	return slices.SortedFunc(maps.Keys(refs), compareNames), slices.Sorted(maps.Keys(uris))
}

// JWKSURIs are those of [References].
func JWKSURIs(settings Settings, rules []*v1alpha1.APIRule) []string {
	_, uris := References(settings, rules, nil)
	return uris
}

// SecretRefs are the Secrets of [References].
func SecretRefs(settings Settings, rules []*v1alpha1.APIRule, gateways []*networkingv1.Gateway) []types.NamespacedName {
	secrets, _ := References(settings, rules, gateways)
	return secrets
}

// secretOf an APIRule: one of its namespace.
func secretOf(r *v1alpha1.APIRule, name string) types.NamespacedName {
	return types.NamespacedName{Namespace: r.Namespace, Name: name}
}

func authentications(r *v1alpha1.APIRule) []v1alpha1.JWTAuthentication {
	var all []v1alpha1.JWTAuthentication
	for i := range r.Spec.Rules {
		if jwt := r.Spec.Rules[i].JWT; jwt != nil {
			all = append(all, jwt.Authentications...)
		}
	}
	return all
}

func compareNames(a, b types.NamespacedName) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}
