package translate

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	istionetworking "istio.io/api/networking/v1alpha3"
	"k8s.io/apimachinery/pkg/types"

	"github.com/lambdamesh/lambdamesh/meshconfig/ir"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// addWorkloads makes a workload of every lambda, the event bus and the
// connector, and lets in whom access lists and bindings name.
func (t *translator) addWorkloads() {
	system := t.settings.SystemNamespace
	for _, member := range []string{v1alpha1.ServiceAccountEventBus, v1alpha1.ServiceAccountConnector} {
		w := &ir.Workload{
			Owner:    ir.Owner{Kind: "Service", Namespace: system, Name: member},
			Selector: map[string]string{v1alpha1.LabelMember: member},
			Identity: t.identity(system, member),
		}
		t.workloads[w.Key()] = w
	}
	lambdas := make([]*v1alpha1.Lambda, 0, len(t.lambdas))
	for _, l := range t.lambdas {
		lambdas = append(lambdas, l)
	}
	lambdas = sorted(lambdas)
	for _, l := range lambdas {
		w := &ir.Workload{
			Owner:    owner("Lambda", l),
			Selector: map[string]string{v1alpha1.LabelLambda: l.Name},
			Identity: t.identity(l.Namespace, l.Name),
		}
		t.workloads[w.Key()] = w
	}
	t.addPodWorkloads()
	// Every lambda is a destination, so that whoever may call it finds it.
	for _, l := range lambdas {
		t.destination(name(l), v1alpha1.ServicePort)
	}
	for _, service := range []string{v1alpha1.ServiceEventBus, v1alpha1.ServiceConnectorOutbound} {
		if key := (types.NamespacedName{Namespace: system, Name: service}); t.services[key] != nil {
			t.destination(key, v1alpha1.ServicePort)
		}
	}
	eventBus, connector := system+"/"+v1alpha1.ServiceAccountEventBus, system+"/"+v1alpha1.ServiceAccountConnector
	t.allow(eventBus, t.identity(system, v1alpha1.ServiceAccountConnector), ir.AllowPublish)
	for _, l := range lambdas {
		key := name(l).String()
		t.allow(eventBus, t.identity(l.Namespace, l.Name), ir.AllowPublish)
		for _, a := range l.Spec.Access {
			if caller := cmp.Or(a.Lambda, a.ServiceAccount); caller != "" {
				t.allow(key, t.identity(cmp.Or(a.Namespace, l.Namespace), caller), ir.AllowAccess)
			}
		}
		if t.bound(l) {
			t.allow(connector, t.identity(l.Namespace, l.Name), ir.AllowBinding)
		}
	}
}

// bound says whether an ApplicationBinding of its namespace picks the lambda.
// Which application and service it may call is the connector's business.
func (t *translator) bound(l *v1alpha1.Lambda) bool {
	return slices.ContainsFunc(t.bindings, func(b *v1alpha1.ApplicationBinding) bool {
		return b.Namespace == l.Namespace && b.DeletionTimestamp.IsZero() && b.Spec.Lambdas.Picks(l.Name, l.Labels)
	})
}

// allowKey finds an entry of a workload's list, which for the event bus is as
// long as there are lambdas.
type allowKey struct {
	workload, principal string
	reason              ir.AllowReason
}

// allow lets a principal in, once per reason.
func (t *translator) allow(workload, principal string, reason ir.AllowReason, rules ...string) {
	w, key := t.workloads[workload], allowKey{workload, principal, reason}
	i, known := t.allowed[key]
	if !known {
		i = len(w.Allow)
		t.allowed[key] = i
		w.Allow = append(w.Allow, ir.Allow{Principal: principal, Reason: reason})
	}
	w.Allow[i].Rules = append(w.Allow[i].Rules, rules...)
}

// allowGateway lets the gateway reach the backends of a rule under that rule.
func (t *ruleTranslator) allowGateway(rule string, backends []ir.Backend) {
	principal := t.identity(t.settings.GatewayServiceAccount.Namespace, t.settings.GatewayServiceAccount.Name)
	seen := map[string]bool{}
	for _, b := range backends {
		w := t.destinations[b.Destination].Workload
		if w != "" && !seen[w] {
			seen[w] = true
			t.allow(w, principal, ir.AllowGateway, rule)
		}
	}
}

// addSubscriptions lets the event bus reach the sinks of subscriptions.
func (t *translator) addSubscriptions() {
	for _, s := range t.subscribers {
		t.addSink(s.Namespace, s.Spec.Sink)
		if dead := s.Spec.Delivery.DeadLetter; dead != nil {
			t.addSink(s.Namespace, dead.Sink)
		}
	}
}

// addSink knows what names nothing: the Subscription's own status says so.
func (t *translator) addSink(namespace string, sink v1alpha1.Sink) {
	key, port := types.NamespacedName{Namespace: namespace, Name: sink.Lambda}, uint32(v1alpha1.ServicePort)
	if sink.Lambda != "" {
		if t.lambdas[key] == nil {
			return
		}
	} else {
		service := sink.ServiceIn(namespace)
		if service == nil {
			return
		}
		key.Name, port = service.Name, uint32(service.Port)
		if t.services[key] == nil {
			return
		}
	}
	d := t.destination(key, port)
	if !t.served(d.Key()) {
		return
	}
	if d.Workload == "" {
		t.sinks[d.Key()] = true
		return
	}
	t.allow(d.Workload, t.identity(t.settings.SystemNamespace, v1alpha1.ServiceAccountEventBus), ir.AllowEventBus)
}

// addSidecars makes a sidecar of every member, and pairs each WorkloadEntry with
// the Sidecar object that selects it. A WorkloadEntry without one has a proxy that
// somebody else configures.
func (t *translator) addSidecars() {
	reach := t.reach()
	t.addPods(reach)
	for _, e := range t.entries.all {
		namespace := e.Namespace
		object := t.entries.sidecar(e)
		if object == nil {
			continue
		}
		s := ir.Sidecar{
			Node:           e.Name + "." + namespace,
			Namespace:      namespace,
			ServiceAccount: cmp.Or(e.Spec.GetServiceAccount(), "default"),
			Workload:       t.workloadOfEntry(e),
		}
		for i, in := range object.Spec.GetIngress() {
			inbound := ir.Inbound{Bind: in.GetBind(), Port: in.GetPort().GetNumber(), Endpoint: in.GetDefaultEndpoint()}
			if problem := inboundProblem(inbound); problem != "" {
				t.report(Problem{
					Kind: "Sidecar", Namespace: namespace, Name: object.Name, Condition: v1alpha1.ConditionAccepted,
					Field: fmt.Sprintf("spec.ingress[%d]", i),
				}.because(v1alpha1.ReasonInvalid, "%s", problem))
				continue
			}
			s.Inbound = append(s.Inbound, inbound)
		}
		principal := t.identity(namespace, s.ServiceAccount)
		for _, out := range object.Spec.GetEgress() {
			if !strings.EqualFold(out.GetPort().GetProtocol(), "HTTP_PROXY") || out.GetBind() == "" || !validPort(out.GetPort().GetNumber()) {
				continue // only the application's HTTP proxy is ours to serve
			}
			s.Egress = append(s.Egress, ir.Egress{
				Bind: out.GetBind(), Port: out.GetPort().GetNumber(),
				Destinations: t.visible(namespace, out, reach[principal]),
			})
		}
		t.sidecarsOut = append(t.sidecarsOut, &s)
	}
	slices.SortFunc(t.sidecarsOut, func(a, b *ir.Sidecar) int { return cmp.Compare(a.Node, b.Node) })
}

func inboundProblem(in ir.Inbound) string {
	switch {
	case in.Bind == "" || !validPort(in.Port):
		return "an inbound listener needs bind and a port between 1 and 65535"
	case in.Endpoint == "":
		return "an inbound listener needs defaultEndpoint (unix:///path or address:port)"
	default:
		return ""
	}
}

func validPort(port uint32) bool { return port >= 1 && port <= 65535 }

// reach is, by principal, the destinations that let it in.
func (t *translator) reach() map[string][]string {
	reach := map[string][]string{}
	for _, key := range sortedKeys(t.destinations) {
		w := t.workloads[t.destinations[key].Workload]
		if w == nil || !t.served(key) {
			continue
		}
		for _, a := range w.Allow {
			// A lambda that is a gateway's service account reaches nothing by it: the
			// gateway's nodes are programmed by their rules.
			if a.Reason != ir.AllowGateway {
				reach[a.Principal] = append(reach[a.Principal], key)
			}
		}
	}
	// A lambda that no binding picks finds the connector all the same, whose
	// sidecar refuses it with 403: "not found" would hide what is missing.
	outbound := types.NamespacedName{Namespace: t.settings.SystemNamespace, Name: v1alpha1.ServiceConnectorOutbound}
	if key := ir.DestinationKey(outbound.Namespace, outbound.Name, v1alpha1.ServicePort); t.destinations[key] != nil {
		for _, l := range t.lambdas {
			principal := t.identity(l.Namespace, l.Name)
			reach[principal] = append(reach[principal], key)
		}
	}
	bus := t.identity(t.settings.SystemNamespace, v1alpha1.ServiceAccountEventBus)
	reach[bus] = append(reach[bus], sortedKeys(t.sinks)...)
	return reach
}

// visible narrows what a workload reaches to the namespaces that the egress
// listener's hosts name: */*, ./* or <namespace>/*.
func (t *translator) visible(namespace string, out *istionetworking.IstioEgressListener, reachable []string) []string {
	var all []string
	for _, key := range reachable {
		theirs := t.destinations[key].Namespace
		if slices.ContainsFunc(out.GetHosts(), func(h string) bool {
			ns, host, found := strings.Cut(h, "/")
			return found && host == "*" && (ns == "*" || ns == theirs || ns == "." && theirs == namespace)
		}) {
			all = append(all, key)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

func (t *translator) workloadOfEntry(e *entry) string {
	all := e.labels
	l := all[v1alpha1.LabelLambda]
	if all[v1alpha1.LabelReplica] != "" && all[v1alpha1.LabelOwnerNamespace] == e.Namespace {
		// A replica becomes an endpoint, with its pods' labels, only when its proxy
		// has the lambda's policies: until then its owner tells whose it is.
		l = cmp.Or(l, all[v1alpha1.LabelOwnerName])
	}
	if l != "" && t.workloads[e.Namespace+"/"+l] != nil {
		return e.Namespace + "/" + l
	}
	if m := all[v1alpha1.LabelMember]; m != "" && e.Namespace == t.settings.SystemNamespace && t.workloads[e.Namespace+"/"+m] != nil {
		return e.Namespace + "/" + m
	}
	return ""
}
