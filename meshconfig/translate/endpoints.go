package translate

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
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

// sliceController manages the EndpointSlices of Services with a selector. Who
// writes others under its name has them put right by it.
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
	// selected by the cluster, from the pods of its own namespace.
	selected bool
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
		selected := len(service.Spec.Selector) > 0 && t.managed(s)
		for _, number := range portsOf(s, port) {
			for _, e := range s.Endpoints {
				if !ready(e) {
					continue
				}
				identity := ""
				if pod := t.memberAt(s, e, number); selected && pod != nil {
					identity = t.identity(pod.Namespace, ServiceAccountOf(pod))
				}
				for _, address := range e.Addresses {
					all = append(all, endpoint{
						Endpoint: ir.Endpoint{Address: address, Port: uint32(number)},
						kind:     "EndpointSlice", object: s, selected: selected, identity: identity,
					})
				}
			}
		}
	}
	return all
}

// managed slices are what the cluster selected, where there is one.
func (t *translator) managed(s *discoveryv1.EndpointSlice) bool {
	return !t.settings.Local && s.Labels[discoveryv1.LabelManagedBy] == sliceController
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

// checkEndpoint says why an endpoint may not be called; nil when it may.
func (t *translator) checkEndpoint(e endpoint) *refusal {
	refuse := func(reason, format string, args ...any) *refusal {
		return &refusal{reason, fmt.Sprintf("the %s %s: ", e.kind, e.object.GetName()) + fmt.Sprintf(format, args...)}
	}
	addr, err := netip.ParseAddr(e.Address)
	if err != nil {
		return refuse(v1alpha1.ReasonTargetRefused, "%s is no IP address", e.Address)
	}
	switch {
	case e.selected:
		if err := targets.CheckPod(addr); err != nil {
			return refuse(v1alpha1.ReasonTargetRefused, "%v", err)
		}
		return nil
	case t.settings.Local && e.proves && addr.IsLoopback():
		return nil
	}
	if owner := t.claimed(e, addr); owner != "" {
		return refuse(v1alpha1.ReasonNotPermitted, "%s belongs to %s; write the APIRule where its Service is", addr, owner)
	}
	url := "http://" + net.JoinHostPort(e.Address, strconv.FormatUint(uint64(e.Port), 10))
	if err := t.settings.Targets.CheckURL(url); err != nil {
		return refuse(v1alpha1.ReasonTargetRefused, "%v", err)
	}
	return nil
}

// claims are the cluster's own addresses, by who has them.
type claims struct {
	services map[netip.Addr]types.NamespacedName
	pods     map[netip.Addr][]string // namespaces
	entries  map[netip.Addr][]*networkingv1.WorkloadEntry
}

// claimed says whom an address belongs to, when that is not the namespace of
// the endpoint. Behind a Service's address there may be anything, even behind one
// of the same namespace. Of WorkloadEntries the oldest has an address, so that
// nobody takes another's away; loopback is everybody's.
func (t *translator) claimed(e endpoint, addr netip.Addr) string {
	if t.claims == nil {
		t.claims = t.newClaims()
	}
	addr = addr.Unmap()
	if service, found := t.claims.services[addr]; found {
		return "Service " + service.String()
	}
	namespace := e.object.GetNamespace()
	for _, owner := range t.claims.pods[addr] {
		if owner != namespace {
			return "namespace " + owner
		}
	}
	if addr.IsLoopback() {
		return ""
	}
	for _, other := range t.claims.entries[addr] {
		if other.Namespace != namespace && olderThan(other, e.object) {
			return "namespace " + other.Namespace
		}
	}
	return ""
}

func olderThan(a, b metav1.Object) bool {
	return cmp.Or(a.GetCreationTimestamp().Time.Compare(b.GetCreationTimestamp().Time), compareNames(name(a), name(b))) < 0
}

func (t *translator) newClaims() *claims {
	c := &claims{
		services: map[netip.Addr]types.NamespacedName{}, pods: map[netip.Addr][]string{},
		entries: map[netip.Addr][]*networkingv1.WorkloadEntry{},
	}
	for key, service := range t.services {
		for _, text := range service.Spec.ClusterIPs {
			if addr, err := netip.ParseAddr(text); err == nil { // not "None"
				c.services[addr.Unmap()] = key
			}
		}
	}
	for key, all := range t.slices {
		for _, s := range all {
			if !t.managed(s) { // a tenant's own would claim the addresses of others
				continue
			}
			for _, e := range s.Endpoints {
				for _, text := range e.Addresses {
					if addr, err := netip.ParseAddr(text); err == nil && !slices.Contains(c.pods[addr.Unmap()], key.Namespace) {
						c.pods[addr.Unmap()] = append(c.pods[addr.Unmap()], key.Namespace)
					}
				}
			}
		}
	}
	for _, namespaces := range c.pods {
		slices.Sort(namespaces) // the same message every time
	}
	for _, e := range t.entries.all {
		if addr, err := netip.ParseAddr(e.Spec.GetAddress()); err == nil {
			c.entries[addr.Unmap()] = append(c.entries[addr.Unmap()], e.WorkloadEntry)
		}
	}
	return c
}
