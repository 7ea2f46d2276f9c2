package translate

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/lambdamesh/lambdamesh/meshconfig/ir"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// Translate says what the objects of s mean, and what is wrong with them. The
// mesh is always valid ([ir.Mesh.Validate]): what is wrong is left out or
// closed.
func Translate(s Snapshot) (ir.Mesh, Problems) {
	t := newTranslator(s)
	t.addWorkloads()
	t.addGateways()
	t.addAPIRules()
	t.addSubscriptions()
	t.addSidecars()
	return t.mesh(), t.sortedProblems()
}

// translator holds what is found while the objects are read.
type translator struct {
	settings    Settings
	meshProblem string
	problems    Problems

	lambdas     map[types.NamespacedName]*v1alpha1.Lambda
	services    map[types.NamespacedName]*corev1.Service
	secrets     map[types.NamespacedName]*corev1.Secret
	slices      map[types.NamespacedName][]*discoveryv1.EndpointSlice // by Service
	pods        map[types.NamespacedName]*corev1.Pod
	lambdaPods  map[string][]*corev1.Pod // by lambda, namespace/name
	members     map[types.NamespacedName]*corev1.Pod
	entries     entryIndex
	jwks        map[string]KeySetResult
	apiRules    []*v1alpha1.APIRule // oldest first
	bindings    []*v1alpha1.ApplicationBinding
	subscribers []*v1alpha1.Subscription
	gatewayObjs []*networkingv1.Gateway

	gateways     map[string]*gateway
	owners       hostOwners
	issuers      map[issuerUse]issuerClaim
	keySets      map[string]keySet
	destinations map[string]*ir.Destination
	refused      map[string]*refusal // destinations that lead where they must not
	claims       *claims             // made when first needed
	rooms        map[string]room     // by namespace
	addresses    map[types.NamespacedName]int
	workloads    map[string]*ir.Workload
	allowed      map[allowKey]int // index into a workload's Allow
	sinks        map[string]bool  // destinations of the event bus that are no workload
	sidecarsOut  []*ir.Sidecar
}

func newTranslator(s Snapshot) *translator {
	t := &translator{
		settings:     s.Settings.withDefaults(),
		meshProblem:  s.MeshProblem,
		lambdas:      byName(s.Lambdas),
		services:     byName(s.Services),
		secrets:      byName(s.Secrets),
		slices:       map[types.NamespacedName][]*discoveryv1.EndpointSlice{},
		pods:         byName(s.Pods),
		lambdaPods:   map[string][]*corev1.Pod{},
		jwks:         s.JWKS,
		apiRules:     slices.SortedFunc(slices.Values(s.APIRules), compareAge),
		bindings:     sorted(s.ApplicationBindings),
		subscribers:  sorted(s.Subscriptions),
		members:      members(s.Members),
		entries:      newEntryIndex(s.WorkloadEntries, s.Sidecars),
		gatewayObjs:  sorted(s.Gateways),
		gateways:     map[string]*gateway{},
		owners:       newHostOwners(),
		issuers:      map[issuerUse]issuerClaim{},
		keySets:      map[string]keySet{},
		destinations: map[string]*ir.Destination{},
		refused:      map[string]*refusal{},
		rooms:        map[string]room{},
		addresses:    map[types.NamespacedName]int{},
		workloads:    map[string]*ir.Workload{},
		allowed:      map[allowKey]int{},
		sinks:        map[string]bool{},
	}
	for _, e := range sorted(s.EndpointSlices) {
		service := types.NamespacedName{Namespace: e.Namespace, Name: e.Labels[discoveryv1.LabelServiceName]}
		t.slices[service] = append(t.slices[service], e)
	}
	for _, pod := range sorted(s.Pods) {
		if lambda := pod.Labels[v1alpha1.LabelLambda]; lambda != "" {
			t.lambdaPods[pod.Namespace+"/"+lambda] = append(t.lambdaPods[pod.Namespace+"/"+lambda], pod)
		}
	}
	return t
}

func (t *translator) mesh() ir.Mesh {
	m := ir.Mesh{TrustDomain: t.settings.TrustDomain, Sidecars: t.sidecarsOut}
	for _, key := range slices.Sorted(maps.Keys(t.gateways)) {
		g := t.gateways[key].ir
		slices.SortFunc(g.VirtualHosts, func(a, b *ir.VirtualHost) int {
			return cmp.Or(cmp.Compare(a.Owner.Namespace, b.Owner.Namespace), cmp.Compare(a.Owner.Name, b.Owner.Name))
		})
		m.Gateways = append(m.Gateways, g)
	}
	for _, name := range slices.Sorted(maps.Keys(t.keySets)) {
		if set := t.keySets[name]; set.used {
			m.KeySets = append(m.KeySets, ir.KeySet{Name: name, JWKS: set.json})
		}
	}
	for _, key := range slices.Sorted(maps.Keys(t.destinations)) {
		m.Destinations = append(m.Destinations, t.destinations[key])
	}
	for _, key := range slices.Sorted(maps.Keys(t.workloads)) {
		w := t.workloads[key]
		slices.SortFunc(w.Allow, func(a, b ir.Allow) int {
			return cmp.Or(cmp.Compare(a.Principal, b.Principal), cmp.Compare(a.Reason, b.Reason))
		})
		for i := range w.Allow {
			slices.Sort(w.Allow[i].Rules)
		}
		m.Workloads = append(m.Workloads, w)
	}
	return m
}

// identity of a service account.
func (t *translator) identity(namespace, serviceAccount string) string {
	return v1alpha1.SPIFFEID(t.settings.TrustDomain, namespace, serviceAccount)
}

func (t *translator) report(p Problem) { t.problems = append(t.problems, p) }

// apiRuleProblem is a problem of an APIRule, without its reason.
func apiRuleProblem(r *v1alpha1.APIRule, condition, field string) Problem {
	return Problem{Kind: "APIRule", Namespace: r.Namespace, Name: r.Name, Condition: condition, Field: field}
}

func (p Problem) because(reason, format string, args ...any) Problem {
	p.Reason, p.Message = reason, fmt.Sprintf(format, args...)
	return p
}

func (t *translator) sortedProblems() Problems {
	slices.SortStableFunc(t.problems, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	return t.problems
}

func name(o metav1.Object) types.NamespacedName {
	return types.NamespacedName{Namespace: o.GetNamespace(), Name: o.GetName()}
}

func byName[T metav1.Object](objects []T) map[types.NamespacedName]T {
	m := make(map[types.NamespacedName]T, len(objects))
	for _, o := range objects {
		m[name(o)] = o
	}
	return m
}

func sorted[T metav1.Object](objects []T) []T {
	return slices.SortedFunc(slices.Values(objects), func(a, b T) int { return compareNames(name(a), name(b)) })
}

// compareAge puts the oldest first; of one second, by name.
func compareAge(a, b *v1alpha1.APIRule) int {
	return cmp.Or(a.CreationTimestamp.Time.Compare(b.CreationTimestamp.Time), compareNames(name(a), name(b)))
}

// sortedKeys of a set.
func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }
