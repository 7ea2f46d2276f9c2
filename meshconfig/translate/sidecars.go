package translate

import (
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lambdamesh/lambdamesh/meshconfig/ir"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// annotationInjected is on every pod that Istio's webhook has given a sidecar.
const annotationInjected = "sidecar.istio.io/status"

// HasSidecar says whether a pod has Istio's sidecar.
func HasSidecar(pod metav1.Object) bool { return pod.GetAnnotations()[annotationInjected] != "" }

// checkSidecars refuses a rule by whose field something (what) is to be checked
// that nobody would check. Only where the backend's sidecar does it
// (Settings.TokensAtSidecars): the gateway lets everything pass there.
func (t *ruleTranslator) checkSidecars(field, what string, backends []ir.Backend) {
	for _, b := range backends {
		d := t.destinations[b.Destination]
		if w := t.workloads[d.Workload]; w == nil || w.Owner.Kind != "Lambda" {
			t.refuse(field, ReasonNoSidecar, "Service %s/%s is no lambda, so that no sidecar of ours checks its %s; route to a lambda, or use noAuth and check %s in the Service", d.Namespace, d.Name, what, what)
			continue
		}
		pods, without := t.lambdaPods[d.Workload], []string{}
		for _, pod := range pods {
			if !HasSidecar(pod) {
				without = append(without, pod.Name)
			}
		}
		switch {
		case len(without) > 0:
			const shown = 3
			names := strings.Join(without[:min(shown, len(without))], ", ")
			if len(without) > shown {
				names += ", ..."
			}
			t.refuse(field, ReasonNoSidecar, "%d of %d pods of lambda %s have no sidecar that checks %s (%s); "+
				"see to it that Istio injects into namespace %s (label it istio-injection=enabled or istio.io/rev=<revision>) and restart the Deployment",
				len(without), len(pods), d.Workload, what, names, d.Namespace)
		case len(pods) == 0 && !t.hasMember(d):
			t.refuse(field, v1alpha1.ReasonPending, "lambda %s has no pod yet whose sidecar checks %s", d.Workload, what)
		}
	}
}

// hasMember says whether a workload runs outside of pods with a proxy beside it.
func (t *translator) hasMember(d *ir.Destination) bool {
	_, name, _ := strings.Cut(d.Workload, "/")
	for _, e := range t.entries.selected(d.Namespace, map[string]string{v1alpha1.LabelLambda: name}) {
		if e.labels[v1alpha1.LabelIstioTLSMode] == "istio" && t.entries.sidecar(e) != nil {
			return true
		}
	}
	return false
}
