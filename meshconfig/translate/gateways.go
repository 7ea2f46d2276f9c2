package translate

import (
	"fmt"
	"slices"
	"strings"

	istionetworking "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/lambdamesh/lambdamesh/meshconfig/ir"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// gateway is a Gateway object as far as it can be served.
type gateway struct {
	ir     ir.Gateway
	domain string
	// leftOut servers and why; an APIRule whose host is not served says so.
	leftOut []string
}

func (t *translator) addGateways() {
	for _, g := range t.gatewayObjs {
		out := &gateway{
			ir: ir.Gateway{
				Namespace: g.Namespace,
				Name:      g.Name,
				Identity:  t.identity(t.settings.GatewayServiceAccount.Namespace, t.settings.GatewayServiceAccount.Name),
			},
			domain: g.Annotations[v1alpha1.AnnotationDomain],
		}
		for i, s := range g.Spec.GetServers() {
			server, problem := t.server(g, i, s)
			if problem != nil {
				out.leftOut = append(out.leftOut, problem.Field+": "+problem.Message)
				t.report(*problem)
				continue
			}
			out.ir.Servers = append(out.ir.Servers, server)
		}
		t.gateways[out.ir.Key()] = out
	}
}

// server translates one server, or says why it cannot be served.
func (t *translator) server(g *networkingv1.Gateway, i int, s *istionetworking.Server) (ir.Server, *Problem) {
	refuse := func(field, condition, reason, format string, args ...any) (ir.Server, *Problem) {
		p := Problem{
			Kind: "Gateway", Namespace: g.Namespace, Name: g.Name,
			Field: fmt.Sprintf("spec.servers[%d]%s", i, field), Condition: condition,
		}.because(reason, format, args...)
		return ir.Server{}, &p
	}
	port := s.GetPort()
	out := ir.Server{Name: port.GetName(), Port: port.GetNumber(), Bind: s.GetBind()}
	if out.Name == "" {
		out.Name = fmt.Sprintf("server-%d", i)
	}
	if out.Port < 1 || out.Port > 65535 {
		return refuse(".port.number", v1alpha1.ConditionAccepted, v1alpha1.ReasonInvalid, "port %d is not between 1 and 65535", out.Port)
	}
	for _, other := range g.Spec.GetServers()[:i] {
		if other.GetPort().GetName() == out.Name {
			return refuse(".port.name", v1alpha1.ConditionAccepted, v1alpha1.ReasonInvalid, "%q names another port of this Gateway too; give each its own name", out.Name)
		}
	}
	for _, other := range g.Spec.GetServers()[:i] {
		if other.GetPort().GetNumber() == out.Port && other.GetTls() != nil && slices.ContainsFunc(s.GetHosts(), func(h string) bool { return slices.Contains(other.GetHosts(), h) }) {
			return refuse(".hosts", v1alpha1.ConditionAccepted, v1alpha1.ReasonInvalid, "another server of this port has the same hosts; a client's SNI could not choose")
		}
		if other.GetPort().GetNumber() == out.Port && !strings.EqualFold(other.GetPort().GetProtocol(), port.GetProtocol()) {
			return refuse(".port.protocol", v1alpha1.ConditionAccepted, v1alpha1.ReasonInvalid, "port %d speaks %s for another server of this Gateway", out.Port, other.GetPort().GetProtocol())
		}
	}
	switch protocol := strings.ToUpper(port.GetProtocol()); protocol {
	case "HTTP", "HTTP2":
		out.Protocol = ir.HTTP
		if s.GetTls().GetHttpsRedirect() {
			return refuse(".tls.httpsRedirect", v1alpha1.ConditionAccepted, v1alpha1.ReasonNotSupported, "redirecting to HTTPS is not supported yet")
		}
	case "HTTPS":
		out.Protocol = ir.HTTPS
		if mode := s.GetTls().GetMode(); mode != istionetworking.ServerTLSSettings_SIMPLE {
			return refuse(".tls.mode", v1alpha1.ConditionAccepted, v1alpha1.ReasonNotSupported, "TLS mode %s is not supported; use SIMPLE", mode)
		}
		out.TLSSecret = s.GetTls().GetCredentialName()
		if out.TLSSecret == "" {
			return refuse(".tls.credentialName", v1alpha1.ConditionAccepted, v1alpha1.ReasonNotSupported, "name a Secret with tls.crt and tls.key as credentialName; files are not supported")
		}
		secret, found := t.secrets[types.NamespacedName{Namespace: g.Namespace, Name: out.TLSSecret}]
		if !found || len(secret.Data["tls.crt"]) == 0 || len(secret.Data["tls.key"]) == 0 {
			return refuse(".tls.credentialName", v1alpha1.ConditionResolvedRefs, v1alpha1.ReasonNotFound, "Secret %s/%s with tls.crt and tls.key does not exist", g.Namespace, out.TLSSecret)
		}
	default:
		return refuse(".port.protocol", v1alpha1.ConditionAccepted, v1alpha1.ReasonNotSupported, "protocol %q is not supported; use HTTP or HTTPS", protocol)
	}
	for _, host := range s.GetHosts() {
		namespace, pattern, found := strings.Cut(host, "/")
		if !found {
			namespace, pattern = "*", host
		}
		if namespace == "." {
			namespace = g.Namespace
		}
		out.Hosts = append(out.Hosts, namespace+"/"+strings.ToLower(pattern))
	}
	return out, nil
}

// urls at which the gateway answers for a host of an APIRule in namespace;
// wildcard hosts have none.
func urls(g *ir.Gateway, namespace, host string, advertised map[uint32]uint32) []string {
	if strings.HasPrefix(host, "*") {
		return nil
	}
	var all []string
	for i := range g.Servers {
		s := &g.Servers[i]
		if !s.Accepts(namespace, host) {
			continue
		}
		port := s.Port
		if p, found := advertised[port]; found {
			port = p
		}
		scheme, usual := "http", uint32(80)
		if s.Protocol == ir.HTTPS {
			scheme, usual = "https", 443
		}
		if port == usual {
			all = append(all, fmt.Sprintf("%s://%s/", scheme, host))
		} else {
			all = append(all, fmt.Sprintf("%s://%s:%d/", scheme, host, port))
		}
	}
	return all
}
