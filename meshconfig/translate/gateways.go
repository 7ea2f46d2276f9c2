package translate

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	istionetworking "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/lambdamesh/lambdamesh/meshconfig/ir"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

type gateway struct {
	ir     ir.Gateway
	domain string
	// declared servers, those that are left out included: who may claim a host
	// is the Gateway's word, whatever else is wrong with a server.
	declared []ir.Server
	// leftOut servers and why; an APIRule whose host is not served says so.
	leftOut []string
	// ailing servers (by name) are served, but something they name is missing.
	ailing map[string]Problem
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
			ailing: map[string]Problem{},
		}
		t.gateways[out.ir.Key()] = out
		r := gatewayReader{translator: t, object: g, field: "spec"}
		// The selector says to Istio which pods are the gateway. A data plane of ours
		// says by its node id which Gateway it is.
		whole := r.onlyHandled("", &g.Spec, "servers", "selector")
		if problem := r.clientAddresses(g, &out.ir); problem != nil {
			whole = problem
		}
		for i := range g.Spec.GetServers() {
			r.field = fmt.Sprintf("spec.servers[%d]", i)
			server, problem := r.server(i)
			out.declared = append(out.declared, server)
			if whole != nil {
				problem = whole
			}
			if problem != nil {
				out.leftOut = append(out.leftOut, problem.Field+": "+problem.Message)
				t.report(*problem)
				continue
			}
			if server.Protocol == ir.HTTPS {
				if problem := r.certificate(server.TLSSecret); problem != nil {
					out.ailing[server.Name] = *problem
					t.report(*problem)
				}
			}
			out.ir.Servers = append(out.ir.Servers, server)
		}
	}
}

// gatewayReader reads one Gateway.
type gatewayReader struct {
	*translator

	object *networkingv1.Gateway
	field  string // what is being read
}

func (r *gatewayReader) problem(field, condition, reason, format string, args ...any) *Problem {
	p := Problem{
		Kind: "Gateway", Namespace: r.object.Namespace, Name: r.object.Name, Field: r.field + field, Condition: condition,
	}.because(reason, format, args...)
	return &p
}

func (r *gatewayReader) refuse(field, reason, format string, args ...any) *Problem {
	return r.problem(field, v1alpha1.ConditionAccepted, reason, format, args...)
}

// onlyHandled refuses what is set in m besides the fields that are obeyed. A
// field that Istio adds is refused until somebody reads it here: what is ignored
// could have been protection.
func (r *gatewayReader) onlyHandled(at string, m proto.Message, handled ...string) *Problem {
	message := m.ProtoReflect()
	fields := message.Descriptor().Fields()
	for i := range fields.Len() {
		field := fields.Get(i)
		if message.Has(field) && !slices.Contains(handled, field.JSONName()) {
			return r.refuse(at+"."+field.JSONName(), v1alpha1.ReasonNotSupported, "%s is not supported; remove it", field.JSONName())
		}
	}
	return nil
}

// server reads the server i of the Gateway. With a problem it is not served; its
// hosts are there all the same.
func (r *gatewayReader) server(i int) (ir.Server, *Problem) {
	s := r.object.Spec.GetServers()[i]
	port := s.GetPort()
	out := ir.Server{Name: port.GetName(), Port: port.GetNumber(), Bind: s.GetBind()}
	if out.Name == "" {
		out.Name = fmt.Sprintf("server-%d", i)
	}
	for _, host := range s.GetHosts() {
		namespace, pattern := splitHost(host)
		if namespace == "." {
			namespace = r.object.Namespace
		}
		out.Hosts = append(out.Hosts, namespace+"/"+pattern)
	}
	for _, check := range []func() *Problem{
		// The name of a server is for Istio's statistics.
		func() *Problem { return r.onlyHandled("", s, "port", "bind", "hosts", "tls", "name") },
		func() *Problem { return r.onlyHandled(".port", port, "number", "protocol", "name") },
		func() *Problem { return r.place(s, &out) },
		func() *Problem { return r.others(i, &out) },
		func() *Problem { return r.protocol(s, &out) },
	} {
		if problem := check(); problem != nil {
			return out, problem
		}
	}
	return out, nil
}

func splitHost(host string) (namespace, pattern string) {
	namespace, pattern, found := strings.Cut(host, "/")
	if !found {
		namespace, pattern = "*", host
	}
	return namespace, strings.ToLower(pattern)
}

// place checks where a server listens and for which hosts.
func (r *gatewayReader) place(s *istionetworking.Server, out *ir.Server) *Problem {
	if !validPort(out.Port) {
		return r.refuse(".port.number", v1alpha1.ReasonInvalid, "port %d is not between 1 and 65535", out.Port)
	}
	if out.Bind != "" {
		if _, err := netip.ParseAddr(out.Bind); err != nil {
			return r.refuse(".bind", v1alpha1.ReasonNotSupported, "%q is no IP address", out.Bind)
		}
	}
	if len(s.GetHosts()) == 0 {
		return r.refuse(".hosts", v1alpha1.ReasonInvalid, "list the hosts that are served here; * is all")
	}
	for _, host := range s.GetHosts() {
		if _, pattern := splitHost(host); pattern != "*" && !validHost(pattern) {
			return r.refuse(".hosts", v1alpha1.ReasonInvalid, "%q: write *, a full name or *.name, after a namespace and / if only one may use it", host)
		}
	}
	return nil
}

// others checks a server against those before it.
func (r *gatewayReader) others(i int, out *ir.Server) *Problem {
	servers := r.object.Spec.GetServers()
	for _, other := range servers[:i] {
		if other.GetPort().GetName() == out.Name {
			return r.refuse(".port.name", v1alpha1.ReasonInvalid, "%q names another port of this Gateway too; give each its own name", out.Name)
		}
	}
	names := patterns(servers[i])
	for _, other := range servers[:i] {
		if other.GetPort().GetNumber() != out.Port {
			continue
		}
		theirs := patterns(other)
		if other.GetTls() != nil && slices.ContainsFunc(names, func(h string) bool { return slices.Contains(theirs, h) }) {
			return r.refuse(".hosts", v1alpha1.ReasonInvalid, "another server of this port has the same hosts; a client's SNI could not choose")
		}
		if protocol := other.GetPort().GetProtocol(); !strings.EqualFold(protocol, servers[i].GetPort().GetProtocol()) {
			return r.refuse(".port.protocol", v1alpha1.ReasonInvalid, "port %d speaks %s for another server of this Gateway", out.Port, protocol)
		}
	}
	return nil
}

func patterns(s *istionetworking.Server) []string {
	var all []string
	for _, host := range s.GetHosts() {
		_, pattern := splitHost(host)
		all = append(all, pattern)
	}
	return all
}

func (r *gatewayReader) protocol(s *istionetworking.Server, out *ir.Server) *Problem {
	switch protocol := strings.ToUpper(s.GetPort().GetProtocol()); protocol {
	case "HTTP", "HTTP2":
		out.Protocol = ir.HTTP
		if s.GetTls() == nil {
			return nil
		}
		return r.onlyHandled(".tls", s.GetTls())
	case "HTTPS":
		out.Protocol = ir.HTTPS
		return r.tls(s.GetTls(), out)
	default:
		return r.refuse(".port.protocol", v1alpha1.ReasonNotSupported, "protocol %q is not supported; use HTTP or HTTPS", protocol)
	}
}

func (r *gatewayReader) tls(settings *istionetworking.ServerTLSSettings, out *ir.Server) *Problem {
	if mode := settings.GetMode(); mode != istionetworking.ServerTLSSettings_SIMPLE {
		return r.refuse(".tls.mode", v1alpha1.ReasonNotSupported, "TLS mode %s is not supported; use SIMPLE", mode)
	}
	if problem := r.onlyHandled(".tls", settings, "mode", "credentialName", "minProtocolVersion", "maxProtocolVersion", "cipherSuites"); problem != nil {
		return problem
	}
	out.TLSSecret = settings.GetCredentialName()
	if out.TLSSecret == "" {
		return r.refuse(".tls.credentialName", v1alpha1.ReasonNotSupported, "name a Secret with tls.crt and tls.key as credentialName; files are not supported")
	}
	versions := map[istionetworking.ServerTLSSettings_TLSProtocol]ir.TLSVersion{
		istionetworking.ServerTLSSettings_TLS_AUTO: "", istionetworking.ServerTLSSettings_TLSV1_2: ir.TLS12, istionetworking.ServerTLSSettings_TLSV1_3: ir.TLS13,
	}
	for _, v := range []struct {
		field string
		given istionetworking.ServerTLSSettings_TLSProtocol
		into  *ir.TLSVersion
	}{
		{".tls.minProtocolVersion", settings.GetMinProtocolVersion(), &out.MinTLS},
		{".tls.maxProtocolVersion", settings.GetMaxProtocolVersion(), &out.MaxTLS},
	} {
		version, spoken := versions[v.given]
		if !spoken {
			return r.refuse(v.field, v1alpha1.ReasonNotSupported, "%s is not spoken; use TLSV1_2 or TLSV1_3", v.given)
		}
		*v.into = version
	}
	if out.MinTLS == ir.TLS13 && out.MaxTLS == ir.TLS12 {
		return r.refuse(".tls.maxProtocolVersion", v1alpha1.ReasonInvalid, "it is below minProtocolVersion")
	}
	for _, suite := range settings.GetCipherSuites() {
		if !slices.Contains(cipherSuites(), suite) {
			return r.refuse(".tls.cipherSuites", v1alpha1.ReasonNotSupported, "%q is not offered; use some of %s", suite, strings.Join(cipherSuites(), ", "))
		}
	}
	out.CipherSuites = settings.GetCipherSuites()
	return nil
}

// cipherSuites of TLS 1.2 that keep the past secret when a key is stolen, as
// Istio and Envoy call them.
func cipherSuites() []string {
	return []string{
		"ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-RSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-RSA-AES256-GCM-SHA384",
		"ECDHE-ECDSA-CHACHA20-POLY1305", "ECDHE-RSA-CHACHA20-POLY1305",
		"ECDHE-ECDSA-AES128-SHA", "ECDHE-RSA-AES128-SHA", "ECDHE-ECDSA-AES256-SHA", "ECDHE-RSA-AES256-SHA",
	}
}

// certificate tells what is wrong with the Secret of a TLS server. The server is
// served all the same: whoever holds the last certificate goes on with it, and a
// port that closed would take the other servers' clients with it.
func (r *gatewayReader) certificate(secretName string) *Problem {
	at := types.NamespacedName{Namespace: r.object.Namespace, Name: secretName}
	const effect = "; connections get the last good certificate, and none where there was none"
	secret, found := r.secrets[at]
	if !found {
		return r.problem(".tls.credentialName", v1alpha1.ConditionResolvedRefs, v1alpha1.ReasonNotFound, "Secret %s with tls.crt and tls.key does not exist%s", at, effect)
	}
	if err := UsableCertificate(secret); err != nil {
		return r.problem(".tls.credentialName", v1alpha1.ConditionResolvedRefs, v1alpha1.ReasonInvalid, "Secret %s: %v%s", at, err, effect)
	}
	return nil
}

// UsableCertificate tells why the Secret of a TLS server cannot be used.
func UsableCertificate(secret *corev1.Secret) error {
	certificate, key := secret.Data[corev1.TLSCertKey], secret.Data[corev1.TLSPrivateKeyKey]
	if len(certificate) == 0 || len(key) == 0 {
		return errors.New("it lacks tls.crt or tls.key")
	}
	if _, err := tls.X509KeyPair(certificate, key); err != nil {
		// The error says nothing of what is in the key.
		return fmt.Errorf("tls.crt and tls.key are no pair: %w", err)
	}
	return nil
}

// reportAiling tells an APIRule what is wrong with the servers that serve it.
func (t *translator) reportAiling(r *v1alpha1.APIRule, g *gateway, hosts []string) {
	for i := range g.ir.Servers {
		s := &g.ir.Servers[i]
		problem, ails := g.ailing[s.Name]
		if ails && slices.ContainsFunc(hosts, func(h string) bool { return s.Accepts(r.Namespace, h) }) {
			t.report(apiRuleProblem(r, v1alpha1.ConditionResolvedRefs, "spec.gateway").because(problem.Reason, "Gateway %s, %s: %s", g.ir.Key(), problem.Field, problem.Message))
		}
	}
}

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
