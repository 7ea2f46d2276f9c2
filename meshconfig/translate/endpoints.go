package translate

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/lambdamesh/lambdamesh/meshconfig/ir"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/targets"
)

// The gateway and the event bus reach what those who write Services do not: each
// other's pods, and what listens beside the proxy itself. So an endpoint that
// somebody wrote by hand is held to the allowed targets, and never belongs to
// another namespace.

// sliceController manages the EndpointSlices of Services with a selector. Its name
// on one proves nothing: whoever may write EndpointSlices may write it, and one that
// is being deleted and kept by a finalizer is never put right.
const sliceController = "endpointslice-controller.k8s.io"

// refusal is why a destination's endpoints may not be called.
type refusal struct{ reason, message string }

// endpoint is one that an object names.
type endpoint struct {
	ir.Endpoint

	kind   string
	object metav1.Object
	// identity that it has to prove; empty when it speaks plain text.
	identity string
	// proves: the connection is mutual TLS and fails with anybody else.
	proves bool
	// managed: the cluster selected it, or will put it right.
	managed bool
	// node: the pod that it stands for has the address of its node.
	node bool
}

// endpoints of a Service's port that are ready. Unix sockets are left out, as
// istiod does.
func (t *translator) endpoints(key types.NamespacedName, service *corev1.Service, port uint32, workload bool) []endpoint {
	if service == nil || service.Spec.Type == corev1.ServiceTypeExternalName {
		return nil
	}
	p, found := servicePort(service, port)
	if !found {
		return nil
	}
	all := t.sliceEndpoints(key, service, p)
	for _, e := range t.entries.selected(key.Namespace, service.Spec.Selector) {
		one := endpoint{
			Endpoint: ir.Endpoint{Address: e.Spec.GetAddress(), Port: entryPort(e, p)},
			kind:     "WorkloadEntry", object: e, proves: workload,
		}
		if e.labels[v1alpha1.LabelIstioTLSMode] == "istio" {
			one.identity, one.proves = t.identity(e.Namespace, cmp.Or(e.Spec.GetServiceAccount(), "default")), true
		}
		all = append(all, one)
	}
	return slices.DeleteFunc(all, func(e endpoint) bool {
		return e.Address == "" || strings.HasPrefix(e.Address, "unix:") || !validPort(e.Port)
	})
}

func (t *translator) sliceEndpoints(key types.NamespacedName, service *corev1.Service, port corev1.ServicePort) []endpoint {
	var all []endpoint
	for _, s := range t.slices[key] {
		managed := len(service.Spec.Selector) > 0 && t.managed(s)
		for _, number := range portsOf(s, port) {
			for _, e := range s.Endpoints {
				if !ready(e) {
					continue
				}
				identity := ""
				if pod := t.memberAt(s, e, number); managed && pod != nil {
					identity = t.identity(pod.Namespace, ServiceAccountOf(pod))
				}
				for _, address := range e.Addresses {
					all = append(all, endpoint{
						Endpoint: ir.Endpoint{Address: address, Port: uint32(number)},
						kind:     "EndpointSlice", object: s, managed: managed, node: t.onNode(s.Namespace, e.TargetRef), identity: identity,
					})
				}
			}
		}
	}
	return all
}

// managed slices are what the cluster selected, or will put right.
func (t *translator) managed(s *discoveryv1.EndpointSlice) bool {
	return !t.settings.Local && s.DeletionTimestamp == nil && s.Labels[discoveryv1.LabelManagedBy] == sliceController
}

// ready as EndpointConditions define it: unknown counts as ready.
func ready(e discoveryv1.Endpoint) bool { return e.Conditions.Ready == nil || *e.Conditions.Ready }

// entryPort is the port of an entry as istiod resolves it.
func entryPort(e *entry, port corev1.ServicePort) uint32 {
	if p, found := e.Spec.GetPorts()[port.Name]; found {
		return p
	}
	if port.TargetPort.Type == intstr.Int && port.TargetPort.IntVal > 0 {
		return uint32(port.TargetPort.IntVal)
	}
	return uint32(port.Port)
}

// checkEndpoint says why an endpoint may not be called; nil when it may. One that
// is away is not called, and that is all: the cluster tells of a Service's pods and
// of the pods themselves one after the other.
func (t *translator) checkEndpoint(e endpoint) (refused *refusal, away bool) {
	refuse := func(reason, format string, args ...any) (*refusal, bool) {
		return &refusal{reason, fmt.Sprintf("the %s %s: ", e.kind, e.object.GetName()) + fmt.Sprintf(format, args...)}, false
	}
	addr, err := netip.ParseAddr(e.Address)
	if err != nil {
		return refuse(v1alpha1.ReasonTargetRefused, "%s is no IP address", e.Address)
	}
	if t.settings.Local && e.proves && addr.IsLoopback() {
		return nil, false
	}
	if t.claims == nil {
		t.claims = t.newClaims()
	}
	owner, own := t.claims.owner(e, addr)
	switch {
	case owner != "":
		return refuse(v1alpha1.ReasonNotPermitted, "%s belongs to %s; write the APIRule where its Service is", addr, owner)
	case own || e.managed && !e.node:
		if err := targets.CheckPod(addr); err != nil {
			return refuse(v1alpha1.ReasonTargetRefused, "%v", err)
		}
		return nil, !own
	}
	url := "http://" + net.JoinHostPort(e.Address, strconv.FormatUint(uint64(e.Port), 10))
	if err := t.settings.Targets.CheckURL(url); err != nil {
		return refuse(v1alpha1.ReasonTargetRefused, "%v", err)
	}
	return nil, false
}
