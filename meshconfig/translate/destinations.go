package translate

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/lambdamesh/lambdamesh/meshconfig/ir"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// backends of the rule at hand. One that does not exist closes the whole rule:
// a share of requests that silently goes elsewhere would hide the mistake.
func (t *ruleTranslator) backends(spec *v1alpha1.Rule) []ir.Backend {
	type choice struct {
		field   string
		lambda  string
		service *v1alpha1.ServiceRef
		weight  int32
	}
	var choices []choice
	n := 0
	if spec.Lambda != "" {
		n++
		choices = append(choices, choice{"", spec.Lambda, nil, 1})
	}
	if spec.Service != nil {
		n++
		choices = append(choices, choice{"", "", spec.Service, 1})
	}
	if len(spec.Backends) > 0 {
		n++
	}
	if spec.Redirect != nil {
		n++
	}
	for i, b := range spec.Backends {
		field := fmt.Sprintf(".backends[%d]", i)
		if (b.Lambda == "") == (b.Service == nil) {
			t.refuse(field, v1alpha1.ReasonInvalid, "a backend names either a lambda or a service")
			continue
		}
		weight := int32(1)
		if b.Weight != nil {
			weight = *b.Weight
		}
		choices = append(choices, choice{field, b.Lambda, b.Service, weight})
	}
	if n != 1 {
		t.refuse("", v1alpha1.ReasonInvalid, "write exactly one of lambda, service, backends, redirect")
		return nil
	}
	if spec.Redirect != nil {
		return nil
	}
	var out []ir.Backend
	for _, c := range choices {
		var destination *ir.Destination
		if c.service != nil {
			destination = t.serviceBackend(c.field+".service", *c.service)
		} else {
			destination = t.lambdaBackend(c.field+".lambda", c.lambda)
		}
		if destination != nil && c.weight > 0 {
			out = append(out, ir.Backend{Destination: destination.Key(), Weight: uint32(c.weight)})
		}
	}
	if len(out) == 0 && t.closed == nil {
		t.refuse(".backends", v1alpha1.ReasonInvalid, "no backend has a weight above 0")
	}
	return out
}

func (t *ruleTranslator) lambdaBackend(field, lambda string) *ir.Destination {
	key := types.NamespacedName{Namespace: t.object.Namespace, Name: lambda}
	if _, found := t.lambdas[key]; !found {
		t.unresolved(field, v1alpha1.ReasonNotFound, "Lambda %s does not exist", key)
		return nil
	}
	return t.backend(field, key, v1alpha1.ServicePort)
}

func (t *ruleTranslator) serviceBackend(field string, ref v1alpha1.ServiceRef) *ir.Destination {
	key := types.NamespacedName{Namespace: cmp.Or(ref.Namespace, t.object.Namespace), Name: ref.Name}
	if key.Namespace != t.object.Namespace {
		t.unresolved(field, v1alpha1.ReasonNotPermitted, "Service %s is in another namespace, which cannot grant this yet; write the APIRule there", key)
		return nil
	}
	port := uint32(cmp.Or(ref.Port, v1alpha1.ServicePort))
	if _, lambda := t.lambdas[key]; lambda && port == v1alpha1.ServicePort {
		return t.backend(field, key, port)
	}
	service, found := t.services[key]
	if !found {
		t.unresolved(field, v1alpha1.ReasonNotFound, "Service %s does not exist", key)
		return nil
	}
	if _, found := servicePort(service, port); !found && service.Spec.Type != corev1.ServiceTypeExternalName {
		t.unresolved(field+".port", v1alpha1.ReasonNotFound, "Service %s has no port %d", key, port)
		return nil
	}
	return t.backend(field, key, port)
}

// backend is a destination all of whose endpoints may be called. The whole rule
// is closed otherwise: where a Service leads, Istio reads for itself.
func (t *ruleTranslator) backend(field string, key types.NamespacedName, port uint32) *ir.Destination {
	d := t.destination(key, port)
	if refused := t.refused[d.Key()]; refused != nil {
		t.unresolved(field, refused.reason, "Service %s: %s", key, refused.message)
		return nil
	}
	return d
}

func servicePort(s *corev1.Service, port uint32) (corev1.ServicePort, bool) {
	i := slices.IndexFunc(s.Spec.Ports, func(p corev1.ServicePort) bool { return p.Port == int32(port) })
	if i < 0 {
		return corev1.ServicePort{}, false
	}
	return s.Spec.Ports[i], true
}

// destination resolves a Service's port. A lambda whose Service is not there
// yet is a destination without endpoints.
func (t *translator) destination(key types.NamespacedName, port uint32) *ir.Destination {
	id := ir.DestinationKey(key.Namespace, key.Name, port)
	if d, found := t.destinations[id]; found {
		return d
	}
	d := &ir.Destination{Namespace: key.Namespace, Name: key.Name, Port: port}
	t.destinations[id] = d
	service := t.services[key]
	d.Workload = t.workloadOf(key, service)
	if key == (types.NamespacedName{Namespace: t.settings.SystemNamespace, Name: v1alpha1.ServiceConnectorOutbound}) {
		d.Aliases = []string{v1alpha1.ServiceConnectorOutbound}
	}
	if refused := t.enter(key.Namespace, t.addressesOf(key, service)); refused != nil {
		t.refused[id] = refused
		return d
	}
	members := map[string]bool{} // identities of the endpoints that speak mutual TLS
	var plain, secured []ir.Endpoint
	for _, e := range t.endpoints(key, service, port, d.Workload != "") {
		refused, away := t.checkEndpoint(e)
		if refused != nil {
			t.refused[id] = cmp.Or(t.refused[id], refused)
		}
		if refused != nil || away {
			continue
		}
		if e.identity != "" {
			secured = append(secured, e.Endpoint)
			members[e.identity] = true
		} else {
			plain = append(plain, e.Endpoint)
		}
	}
	if service != nil && service.Spec.Type == corev1.ServiceTypeExternalName {
		t.refused[id] = &refusal{v1alpha1.ReasonTargetRefused, "it is an ExternalName, which leads to whatever its name stands for; " +
			"give it a selector, or no selector and EndpointSlices whose addresses --allow-target allows"}
	}
	switch {
	case d.Workload != "":
		// Who answers for a workload must prove to be it, wherever it runs.
		d.Identities = []string{t.workloads[d.Workload].Identity}
		d.Endpoints = append(plain, secured...)
	case t.podWorkload(key, service, port) != "":
		d.Workload = t.podWorkload(key, service, port)
		d.Identities, d.Endpoints = []string{t.workloads[d.Workload].Identity}, secured
	case len(members) > 0:
		// Never in plain text to a Service that has members of the mesh.
		d.Identities, d.Endpoints = slices.Sorted(maps.Keys(members)), secured
	default:
		d.Endpoints = plain
	}
	slices.SortFunc(d.Endpoints, func(a, b ir.Endpoint) int {
		return cmp.Or(cmp.Compare(a.Address, b.Address), cmp.Compare(a.Port, b.Port))
	})
	d.Endpoints = slices.Compact(d.Endpoints)
	if refused := t.take(d); refused != nil {
		t.refused[id] = refused
		d.Endpoints, d.Identities = nil, nil
	}
	return d
}

// workloadOf a Service: the lambda of its name, or what its selector names.
func (t *translator) workloadOf(key types.NamespacedName, service *corev1.Service) string {
	if _, found := t.lambdas[key]; found {
		return key.String()
	}
	if service == nil {
		return ""
	}
	if lambda := service.Spec.Selector[v1alpha1.LabelLambda]; lambda != "" {
		if w := key.Namespace + "/" + lambda; t.workloads[w] != nil {
			return w
		}
	}
	if member := service.Spec.Selector[v1alpha1.LabelMember]; member != "" && key.Namespace == t.settings.SystemNamespace {
		if w := key.Namespace + "/" + member; t.workloads[w] != nil {
			return w
		}
	}
	return ""
}
