package deploy

import (
	"cmp"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/sidecar"
)

const (
	// labelApp is on the pods of the system, as manifests/ has them.
	labelApp = "app.kubernetes.io/name"
	// labelMetrics is on namespaces whose pods may scrape metrics.
	labelMetrics = v1alpha1.Group + "/metrics"
)

// Callers are the parts of the system that other objects let call a lambda.
type Callers struct {
	// Gateway: an APIRule routes to it.
	Gateway bool
	// EventBus: a Subscription names it as a sink.
	EventBus bool
}

// NetworkPolicy lets in what the lambda's objects name and nothing else: the
// system's callers, those of its access list, and scrapers of its metrics. It
// knows pods and namespaces, no identities: which of a namespace's service
// accounts may call is for mutual TLS. A node's own probes pass every policy.
func NetworkPolicy(lambda *v1alpha1.Lambda, callers Callers, options Options) *networkingv1.NetworkPolicy {
	system := cmp.Or(options.SystemNamespace, v1alpha1.SystemNamespace)
	var from []networkingv1.NetworkPolicyPeer
	if callers.Gateway {
		from = append(from, peer(system, map[string]string{labelApp: v1alpha1.ServiceAccountGateway}))
	}
	if callers.EventBus {
		from = append(from, peer(system, map[string]string{labelApp: v1alpha1.ServiceAccountEventBus}))
	}
	for _, a := range lambda.Spec.Access {
		namespace := cmp.Or(a.Namespace, lambda.Namespace)
		switch {
		case a.Lambda != "":
			from = append(from, peer(namespace, map[string]string{v1alpha1.LabelLambda: a.Lambda}))
		case a.ServiceAccount != "": // on no pod's labels
			from = append(from, peer(namespace, nil))
		}
	}
	policy := &networkingv1.NetworkPolicy{
		ObjectMeta: objectMeta(lambda, "lambda-"+lambda.Name),
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: metav1.LabelSelector{MatchLabels: selector(lambda)},
			PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress},
			Ingress: []networkingv1.NetworkPolicyIngressRule{{
				From: []networkingv1.NetworkPolicyPeer{{
					NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{labelMetrics: "true"}},
				}},
				Ports: metricsPorts(options),
			}},
		},
	}
	if len(from) > 0 { // no peers would be all of them
		policy.Spec.Ingress = append(policy.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{From: from, Ports: callPorts(options)})
	}
	return policy
}

// peer is the pods of a namespace that have the labels, without labels all.
func peer(namespace string, pods map[string]string) networkingv1.NetworkPolicyPeer {
	p := networkingv1.NetworkPolicyPeer{
		NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{corev1.LabelMetadataName: namespace}},
	}
	if pods != nil {
		p.PodSelector = &metav1.LabelSelector{MatchLabels: pods}
	}
	return p
}

// callPorts are the application's, or its sidecar's: by number, because not every
// network plugin looks for names of ports among init containers.
func callPorts(options Options) []networkingv1.NetworkPolicyPort {
	if options.Sidecar != nil {
		return ports(intstr.FromInt32(sidecar.InboundPort))
	}
	return ports(intstr.FromString(v1alpha1.ServiceHTTPPort))
}

func metricsPorts(options Options) []networkingv1.NetworkPolicyPort {
	if options.Sidecar != nil {
		return ports(intstr.FromString(AdminPortName), intstr.FromInt32(sidecar.ReadyPort))
	}
	return ports(intstr.FromString(AdminPortName))
}

func ports(all ...intstr.IntOrString) []networkingv1.NetworkPolicyPort {
	out := make([]networkingv1.NetworkPolicyPort, 0, len(all))
	for _, one := range all {
		out = append(out, networkingv1.NetworkPolicyPort{Protocol: new(corev1.ProtocolTCP), Port: new(one)})
	}
	return out
}
