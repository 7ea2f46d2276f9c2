package translate

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/targets"
)

// claims are the cluster's own addresses, by who has them. What EndpointSlices
// name is nobody's by that: whoever may write one may name any address in it.
type claims struct {
	services map[netip.Addr]types.NamespacedName
	pods     map[netip.Addr][]string // namespaces
	// ended are the namespaces of pods that have ended. Their addresses may be
	// another's by now, so that they keep nobody out.
	ended   map[netip.Addr][]string
	entries map[netip.Addr][]*networkingv1.WorkloadEntry
}

func (t *translator) newClaims() *claims {
	c := &claims{
		services: map[netip.Addr]types.NamespacedName{}, pods: map[netip.Addr][]string{}, ended: map[netip.Addr][]string{},
		entries: map[netip.Addr][]*networkingv1.WorkloadEntry{},
	}
	for key, service := range t.services {
		for _, text := range service.Spec.ClusterIPs {
			if addr, err := netip.ParseAddr(text); err == nil { // not "None"
				c.services[targets.Canonical(addr)] = key
			}
		}
	}
	for _, pod := range t.pods {
		if t.settings.Local || pod.Spec.HostNetwork { // nobody runs the pods of one machine; a node's address is no pod's
			continue
		}
		by := c.pods
		if ended(pod) {
			by = c.ended
		}
		for _, ip := range pod.Status.PodIPs {
			addr, err := netip.ParseAddr(ip.IP)
			if addr = targets.Canonical(addr); err == nil && !slices.Contains(by[addr], pod.Namespace) {
				by[addr] = append(by[addr], pod.Namespace)
			}
		}
	}
	for _, namespaces := range c.pods {
		slices.Sort(namespaces) // the same message every time
	}
	for _, e := range t.entries.all {
		if addr, err := netip.ParseAddr(e.Spec.GetAddress()); err == nil {
			c.entries[targets.Canonical(addr)] = append(c.entries[targets.Canonical(addr)], e.WorkloadEntry)
		}
	}
	return c
}

// owner of an address, when that is not the namespace of the endpoint; own says
// that it is a pod's of that namespace. Behind a Service's address there may be
// anything, even behind one of the same namespace. Of WorkloadEntries the oldest
// has an address, so that nobody takes another's away; loopback is everybody's.
func (c *claims) owner(e endpoint, addr netip.Addr) (other string, own bool) {
	addr = targets.Canonical(addr)
	if service, found := c.services[addr]; found {
		return "Service " + service.String(), false
	}
	namespace := e.object.GetNamespace()
	for _, theirs := range c.pods[addr] {
		if theirs != namespace {
			return "namespace " + theirs, false
		}
	}
	if len(c.pods[addr]) > 0 || slices.Contains(c.ended[addr], namespace) {
		return "", true
	}
	if addr.IsLoopback() {
		return "", false
	}
	for _, entry := range c.entries[addr] {
		if entry.Namespace != namespace && olderThan(entry, e.object) {
			return "namespace " + entry.Namespace, false
		}
	}
	return "", false
}

func olderThan(a, b metav1.Object) bool {
	return cmp.Or(a.GetCreationTimestamp().Time.Compare(b.GetCreationTimestamp().Time), compareNames(name(a), name(b))) < 0
}

// ended pods have no container that runs, now or later.
func ended(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}

// onNode says whether an endpoint stands for a pod with its node's address.
func (t *translator) onNode(namespace string, ref *corev1.ObjectReference) bool {
	if ref == nil || ref.Kind != "Pod" {
		return false
	}
	pod := t.pods[types.NamespacedName{Namespace: namespace, Name: ref.Name}]
	return pod != nil && pod.Spec.HostNetwork
}

// NeededOfPod is a pod with all that a translation reads of it, and no more: of a
// cluster's pods the rest is most of what a control plane would keep in memory.
func NeededOfPod(pod *corev1.Pod) *corev1.Pod {
	ours := func(all map[string]string) map[string]string {
		var out map[string]string
		for k, v := range all {
			if strings.HasPrefix(k, v1alpha1.Group+"/") || k == annotationInjected {
				if out == nil {
					out = map[string]string{}
				}
				out[k] = v
			}
		}
		return out
	}
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID, ResourceVersion: pod.ResourceVersion,
			Labels: ours(pod.Labels), Annotations: ours(pod.Annotations),
		},
		Spec:   corev1.PodSpec{ServiceAccountName: pod.Spec.ServiceAccountName, HostNetwork: pod.Spec.HostNetwork},
		Status: corev1.PodStatus{Phase: pod.Status.Phase, PodIPs: pod.Status.PodIPs},
	}
}

// SameOfPod says whether two versions of a pod are one to a translation. Most
// changes of a pod are of its status.
func SameOfPod(a, b *corev1.Pod) bool {
	return a.UID == b.UID && ended(a) == ended(b) && slices.Equal(a.Status.PodIPs, b.Status.PodIPs) &&
		maps.Equal(a.Labels, b.Labels) && maps.Equal(a.Annotations, b.Annotations)
}
