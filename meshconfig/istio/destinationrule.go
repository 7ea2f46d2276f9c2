package istio

import (
	"maps"
	"slices"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	networking "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lambdamesh/lambdamesh/meshconfig/ir"
)

// subsetMutualTLS of a lambda's host is what rules with a token route to.
const subsetMutualTLS = "lambdamesh-mtls"

// destinationRules make the gateway speak to the workload by mutual TLS alone
// under rules that need a token. Automatic mutual TLS goes by the endpoint's label,
// and would send a token that nobody has checked in clear text to a pod without a
// sidecar, until the control plane has heard of that pod and closes the rule.
//
// It is a subset that only our routes name, of all endpoints, and no policy of the
// host: other callers and other rules keep what they have. It says nothing about
// exportTo, as an operator's for the same host: istiod merges the DestinationRules
// of a host only when they say the same there, and lets one hide the other when
// not.
func (w *writer) destinationRules(workload *ir.Workload) {
	services := map[string]*ir.Destination{}
	for _, a := range workload.Allow {
		for _, id := range a.Rules {
			r := w.rules[id]
			if r.JWT == nil || !w.enforceable(r) {
				continue
			}
			for _, b := range r.Backends {
				if d := w.destinations[b.Destination]; d.Workload == workload.Key() {
					services[d.Name] = d
				}
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(services)) {
		rule := &networkingv1.DestinationRule{
			TypeMeta:   metav1.TypeMeta{APIVersion: networkingv1.SchemeGroupVersion.String(), Kind: "DestinationRule"},
			ObjectMeta: meta("lambda-", workload.Owner),
		}
		rule.Name = "lambda-" + name // a Service's: several may select one lambda
		rule.Spec.Host = services[name].Hostname()
		rule.Spec.Subsets = []*networking.Subset{{
			Name: subsetMutualTLS,
			TrafficPolicy: &networking.TrafficPolicy{Tls: &networking.ClientTLSSettings{
				Mode: networking.ClientTLSSettings_ISTIO_MUTUAL,
				// Said explicitly: istiod would take those of the endpoints' own service
				// accounts, and any of the mesh where it knows none.
				SubjectAltNames: []string{workload.Identity},
			}, OutlierDetection: ejection()},
		}}
		w.add(rule)
	}
}

// ejection is what the proxies of the other output do with endpoints that take no
// connections.
func ejection() *networking.OutlierDetection {
	return &networking.OutlierDetection{
		SplitExternalLocalOriginErrors: true,
		ConsecutiveLocalOriginFailures: wrapperspb.UInt32(ir.EjectAfter),
		Consecutive_5XxErrors:          wrapperspb.UInt32(0),
		Interval:                       durationpb.New(ir.EjectInterval),
		BaseEjectionTime:               durationpb.New(ir.EjectFor),
		MaxEjectionPercent:             ir.EjectPercent,
	}
}
