package translate

import (
	"cmp"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/lambdamesh/lambdamesh/meshconfig/ir"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/sidecar"
)

// A pod in the mesh is who its service account is, and so are the policies that
// it gets: labels, which everybody writes into his pods, give it nothing.

// ServiceAccountOf a pod.
func ServiceAccountOf(pod *corev1.Pod) string {
	return cmp.Or(pod.Spec.ServiceAccountName, "default")
}

// IsMember says whether a pod has a sidecar of ours, or had one while it ran.
func IsMember(pod *corev1.Pod) bool {
	return pod.Labels[v1alpha1.LabelSidecar] == "true" && !ended(pod)
}

// members by name.
func members(pods []*corev1.Pod) map[types.NamespacedName]*corev1.Pod {
	all := map[types.NamespacedName]*corev1.Pod{}
	for _, pod := range pods {
		if IsMember(pod) {
			all[name(pod)] = pod
		}
	}
	return all
}

// addPodWorkloads makes a workload of every service account that members run as
// and that is no lambda's and none of ours. It may publish, as itself.
func (t *translator) addPodWorkloads() {
	eventBus := t.settings.SystemNamespace + "/" + v1alpha1.ServiceAccountEventBus
	for _, key := range sortedNames(t.members) {
		account := ServiceAccountOf(t.members[key])
		w := &ir.Workload{
			Owner:    ir.Owner{Kind: "ServiceAccount", Namespace: key.Namespace, Name: account},
			Selector: map[string]string{v1alpha1.LabelSidecar: "true"},
			Identity: t.identity(key.Namespace, account),
		}
		if t.workloads[w.Key()] == nil {
			t.workloads[w.Key()] = w
			t.allow(eventBus, w.Identity, ir.AllowPublish)
		}
	}
}

// addPods makes a sidecar of every member.
func (t *translator) addPods(reach map[string][]string) {
	for key, pod := range t.members {
		account := ServiceAccountOf(pod)
		s := ir.Sidecar{
			Node: sidecar.NodeID(key.Namespace, key.Name), Namespace: key.Namespace, ServiceAccount: account,
			Workload: key.Namespace + "/" + account,
		}
		// Where it listens was judged when the pod was made; what became of the
		// annotation since does not open anything.
		if endpoint, err := sidecar.AppEndpoint(pod.Annotations); err == nil {
			s.Inbound = []ir.Inbound{{Bind: "0.0.0.0", Port: sidecar.InboundPort, Endpoint: endpoint}}
		}
		destinations := slices.Sorted(slices.Values(reach[t.identity(key.Namespace, account)]))
		s.Egress = []ir.Egress{{Bind: "127.0.0.1", Port: sidecar.EgressPort, Destinations: slices.Compact(destinations)}}
		t.sidecarsOut = append(t.sidecarsOut, &s)
	}
}

// memberAt is the member that an endpoint of a slice leads to the sidecar of.
func (t *translator) memberAt(s *discoveryv1.EndpointSlice, e discoveryv1.Endpoint, port int32) *corev1.Pod {
	if port != sidecar.InboundPort || e.TargetRef == nil || e.TargetRef.Kind != "Pod" {
		return nil
	}
	return t.members[types.NamespacedName{Namespace: s.Namespace, Name: e.TargetRef.Name}]
}

// podWorkload is the workload whose sidecars, and nobody else's, a Service's port
// leads to, ready or not; empty: there is none, or more than one.
func (t *translator) podWorkload(key types.NamespacedName, service *corev1.Service, port uint32) string {
	if service == nil || len(service.Spec.Selector) == 0 {
		return ""
	}
	p, found := servicePort(service, port)
	if !found {
		return ""
	}
	workload := ""
	for _, s := range t.slices[key] {
		if !t.managed(s) {
			continue
		}
		for _, number := range portsOf(s, p) {
			for _, e := range s.Endpoints {
				pod := t.memberAt(s, e, number)
				if pod == nil {
					continue
				}
				its := pod.Namespace + "/" + ServiceAccountOf(pod)
				if workload != "" && workload != its {
					return ""
				}
				workload = its
			}
		}
	}
	return workload
}

// portsOf a slice that belong to a Service's port.
func portsOf(s *discoveryv1.EndpointSlice, port corev1.ServicePort) []int32 {
	var all []int32
	for _, p := range s.Ports {
		if p.Port == nil || (p.Name != nil && *p.Name != port.Name) || (p.Name == nil && port.Name != "") {
			continue
		}
		all = append(all, *p.Port)
	}
	return all
}

func sortedNames[V any](m map[types.NamespacedName]V) []types.NamespacedName {
	names := make([]types.NamespacedName, 0, len(m))
	for key := range m {
		names = append(names, key)
	}
	slices.SortFunc(names, compareNames)
	return names
}
