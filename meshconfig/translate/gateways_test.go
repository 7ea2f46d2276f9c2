package translate_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	istioapi "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lambdamesh/lambdamesh/meshconfig/ir"
	"github.com/lambdamesh/lambdamesh/meshconfig/translate"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

func gatewayOf(spec *istioapi.Gateway) *networkingv1.Gateway {
	g := &networkingv1.Gateway{ObjectMeta: metav1.ObjectMeta{
		Namespace: "lambdamesh-system", Name: "gateway", Annotations: map[string]string{v1alpha1.AnnotationDomain: "example.com"},
	}}
	proto.Merge(&g.Spec, spec)
	return g
}

func plainServer(hosts ...string) *istioapi.Server {
	return &istioapi.Server{Port: &istioapi.Port{Number: 80, Name: "http", Protocol: "HTTP"}, Hosts: hosts}
}

func tlsServer(hosts ...string) *istioapi.Server {
	return &istioapi.Server{
		Port: &istioapi.Port{Number: 443, Name: "https", Protocol: "HTTPS"}, Hosts: hosts,
		Tls: &istioapi.ServerTLSSettings{Mode: istioapi.ServerTLSSettings_SIMPLE, CredentialName: "certificate"},
	}
}

// Whatever field of a Gateway somebody sets, it changes the mesh or a problem
// names it: a new field of Istio's cannot be ignored in silence.
func TestEveryFieldOfAGatewayIsObeyedOrRefused(t *testing.T) {
	// What means nothing here, and why.
	inert := map[string]string{
		"selector":     "the node id of a data plane names its Gateway; the selector is Istio's",
		"servers.name": "a name for Istio's statistics",
	}
	base := func(tls bool) *istioapi.Gateway {
		if tls {
			return &istioapi.Gateway{Servers: []*istioapi.Server{tlsServer("*")}}
		}
		return &istioapi.Gateway{Servers: []*istioapi.Server{plainServer("*")}}
	}
	seen := 0
	var walk func(t *testing.T, path []protoreflect.FieldDescriptor, message protoreflect.MessageDescriptor)
	walk = func(t *testing.T, path []protoreflect.FieldDescriptor, message protoreflect.MessageDescriptor) {
		fields := message.Fields()
		for i := range fields.Len() {
			field := append(slices.Clone(path), fields.Get(i))
			name := dotted(field)
			if m := fields.Get(i).Message(); m != nil && !fields.Get(i).IsMap() && name != "servers.tls.tlsCertificates" {
				walk(t, field, m)
				continue
			}
			for _, tls := range []bool{false, true} {
				t.Run(map[bool]string{false: "http/", true: "https/"}[tls]+name, func(t *testing.T) {
					seen++
					before, after := base(tls), base(tls)
					change(t, after.ProtoReflect(), field)
					require.False(t, proto.Equal(before, after), "the test changes nothing")
					was, _ := translate.Translate(translate.Snapshot{Gateways: []*networkingv1.Gateway{gatewayOf(before)}})
					is, problems := translate.Translate(translate.Snapshot{Gateways: []*networkingv1.Gateway{gatewayOf(after)}})
					named := slices.ContainsFunc(problems, func(p translate.Problem) bool {
						return p.Kind == "Gateway" && strings.Contains(p.Field+p.Message, field[len(field)-1].JSONName())
					})
					if reason := inert[name]; reason != "" {
						require.Empty(t, cmp.Diff(was, is), "it is said to be inert: %s", reason)
						return
					}
					require.True(t, named || !cmp.Equal(was, is), "%s is neither obeyed nor refused: %+v", name, problems)
				})
			}
		}
	}
	walk(t, nil, (&istioapi.Gateway{}).ProtoReflect().Descriptor())
	require.Greater(t, seen, 40, "the fields were walked")
}

func dotted(path []protoreflect.FieldDescriptor) string {
	var names []string
	for _, f := range path {
		names = append(names, f.JSONName())
	}
	return strings.Join(names, ".")
}

// change sets the field at the end of the path to something else.
func change(t *testing.T, m protoreflect.Message, path []protoreflect.FieldDescriptor) {
	t.Helper()
	field := path[0]
	if len(path) > 1 {
		if field.IsList() {
			change(t, m.Mutable(field).List().Get(0).Message(), path[1:])
		} else {
			change(t, m.Mutable(field).Message(), path[1:])
		}
		return
	}
	switch {
	case field.IsMap():
		m.Mutable(field).Map().Set(protoreflect.ValueOfString("a").MapKey(), protoreflect.ValueOfString("b"))
	case field.IsList() && field.Message() != nil:
		m.Mutable(field).List().AppendMutable()
	case field.IsList():
		m.Mutable(field).List().Append(protoreflect.ValueOfString("other.example.com"))
	case field.Kind() == protoreflect.StringKind:
		m.Set(field, protoreflect.ValueOfString("10.0.0.1"))
	case field.Kind() == protoreflect.BoolKind:
		m.Set(field, protoreflect.ValueOfBool(true))
	case field.Kind() == protoreflect.Uint32Kind:
		m.Set(field, protoreflect.ValueOfUint32(8080))
	case field.Kind() == protoreflect.EnumKind:
		m.Set(field, protoreflect.ValueOfEnum(m.Get(field).Enum()+4))
	default:
		t.Fatalf("a field of kind %s: teach the test to change it", field.Kind())
	}
}

func TestAGatewaysServersAreReadOrLeftOutWithAReason(t *testing.T) {
	change := func(f func(s *istioapi.Server)) *istioapi.Gateway {
		s := tlsServer("*.example.com")
		f(s)
		return &istioapi.Gateway{Servers: []*istioapi.Server{s}}
	}
	for name, test := range map[string]struct {
		spec  *istioapi.Gateway
		field string // of the problem; empty: served
		check func(t *testing.T, s ir.Server)
	}{
		"TLS 1.3 only": {change(func(s *istioapi.Server) { s.Tls.MinProtocolVersion = istioapi.ServerTLSSettings_TLSV1_3 }), "", func(t *testing.T, s ir.Server) {
			require.Equal(t, ir.TLS13, s.MinTLS)
			require.Empty(t, s.MaxTLS)
		}},
		"cipher suites": {change(func(s *istioapi.Server) { s.Tls.CipherSuites = []string{"ECDHE-RSA-AES256-GCM-SHA384"} }), "", func(t *testing.T, s ir.Server) {
			require.Equal(t, []string{"ECDHE-RSA-AES256-GCM-SHA384"}, s.CipherSuites)
		}},
		"TLS 1.0":                  {change(func(s *istioapi.Server) { s.Tls.MinProtocolVersion = istioapi.ServerTLSSettings_TLSV1_0 }), "spec.servers[0].tls.minProtocolVersion", nil},
		"at most TLS 1.1":          {change(func(s *istioapi.Server) { s.Tls.MaxProtocolVersion = istioapi.ServerTLSSettings_TLSV1_1 }), "spec.servers[0].tls.maxProtocolVersion", nil},
		"no version at all":        {change(func(s *istioapi.Server) { s.Tls.MinProtocolVersion, s.Tls.MaxProtocolVersion = 4, 3 }), "spec.servers[0].tls.maxProtocolVersion", nil},
		"no forward secrecy":       {change(func(s *istioapi.Server) { s.Tls.CipherSuites = []string{"AES128-SHA"} }), "spec.servers[0].tls.cipherSuites", nil},
		"a socket as bind":         {change(func(s *istioapi.Server) { s.Bind = "unix:///tmp/x" }), "spec.servers[0].bind", nil},
		"no host":                  {change(func(s *istioapi.Server) { s.Hosts = nil }), "spec.servers[0].hosts", nil},
		"a host with a star":       {change(func(s *istioapi.Server) { s.Hosts = []string{"a.*.com"} }), "spec.servers[0].hosts", nil},
		"TLS on a plain port":      {change(func(s *istioapi.Server) { s.Port.Protocol = "HTTP" }), "spec.servers[0].tls.mode", nil},
		"one host, two namespaces": {&istioapi.Gateway{Servers: []*istioapi.Server{tlsServer("a/x.example.com"), named(tlsServer("b/x.example.com"), "other")}}, "spec.servers[1].hosts", nil},
	} {
		t.Run(name, func(t *testing.T) {
			mesh, problems := translate.Translate(translate.Snapshot{Gateways: []*networkingv1.Gateway{gatewayOf(test.spec)}})
			require.NoError(t, mesh.Validate())
			var fields []string
			for _, p := range problems {
				if p.Condition == v1alpha1.ConditionAccepted {
					fields = append(fields, p.Field)
				}
			}
			if test.field != "" {
				require.Equal(t, []string{test.field}, fields)
				return
			}
			require.Empty(t, fields)
			require.Len(t, mesh.Gateways[0].Servers, 1)
			test.check(t, mesh.Gateways[0].Servers[0])
		})
	}
}

func named(s *istioapi.Server, name string) *istioapi.Server {
	s.Port.Name = name
	return s
}

// A namespace that a Gateway does not admit cannot keep a host from one that it
// does, on this Gateway or another one, and not with one that does not exist.
func TestAHostIsClaimedOnlyWhereTheGatewayAdmitsTheNamespace(t *testing.T) {
	for name, test := range map[string]struct{ hosts, gateway string }{
		"a server for another namespace": {"bank/*.example.com", ""},
		"the gateway's own namespace":    {"./*.example.com", ""},
		"another gateway":                {"*", "edge/restricted"},
		"a gateway that does not exist":  {"*", "nowhere/gateway"},
	} {
		t.Run(name, func(t *testing.T) {
			restricted := gatewayOf(&istioapi.Gateway{Servers: []*istioapi.Server{plainServer("bank/*.example.com")}})
			restricted.Namespace, restricted.Name = "edge", "restricted"
			servers := []*istioapi.Server{plainServer(test.hosts)}
			if test.hosts == "./*.example.com" {
				servers = append(servers, named(plainServer("bank/*.example.com"), "bank"))
			}
			older, younger := ruleOf("shop", "older", 1, "pay.example.com"), ruleOf("bank", "younger", 2, "pay.example.com")
			older.Spec.Gateway = test.gateway
			s := translate.Snapshot{
				Gateways: []*networkingv1.Gateway{gatewayOf(&istioapi.Gateway{Servers: servers}), restricted},
				APIRules: []*v1alpha1.APIRule{older, younger},
			}
			mesh, problems := translate.Translate(s)
			statuses := translate.Statuses(s, mesh, problems)
			require.Equal(t, "younger", statuses[0].Name)
			require.True(t, statuses[0].Served, "%+v", statuses[0].Conditions)
			require.False(t, statuses[1].Served)
			require.Equal(t, metav1.ConditionFalse, statuses[1].Conditions[0].Status)
		})
	}
}

// A server that cannot be served for now keeps its hosts with who claims them.
func TestAServerThatIsLeftOutKeepsItsHosts(t *testing.T) {
	broken := tlsServer("shop/*.example.com")
	broken.Tls.Mode = istioapi.ServerTLSSettings_MUTUAL
	s := translate.Snapshot{
		Gateways: []*networkingv1.Gateway{gatewayOf(&istioapi.Gateway{Servers: []*istioapi.Server{broken, plainServer("bank/*.example.com")}})},
		APIRules: []*v1alpha1.APIRule{ruleOf("shop", "older", 1, "pay.example.com"), ruleOf("bank", "younger", 2, "pay.example.com")},
	}
	mesh, problems := translate.Translate(s)
	statuses := translate.Statuses(s, mesh, problems)
	require.Equal(t, translate.ReasonHostConflict, statuses[0].Conditions[0].Reason)
	require.Equal(t, translate.ReasonHostNotServed, statuses[1].Conditions[0].Reason)
}

func TestGatewaysInUseAndAilingSidecarsHaveAStatus(t *testing.T) {
	foreign := gatewayOf(&istioapi.Gateway{Servers: []*istioapi.Server{{Port: &istioapi.Port{Number: 1, Protocol: "MONGO"}}}})
	foreign.Namespace, foreign.Annotations = "foreign", nil
	own := gatewayOf(&istioapi.Gateway{Servers: []*istioapi.Server{tlsServer("*")}})
	s := translate.Snapshot{Gateways: []*networkingv1.Gateway{own, foreign}, APIRules: []*v1alpha1.APIRule{ruleOf("shop", "a", 1, "a")}}
	_, problems := translate.Translate(s)
	statuses := translate.ObjectStatuses(s, problems)
	require.Len(t, statuses, 1, "another team's Gateway is not judged")
	require.Equal(t, "lambdamesh-system", statuses[0].Namespace)
	require.Equal(t, metav1.ConditionTrue, statuses[0].Conditions[0].Status)
	require.Equal(t, v1alpha1.ConditionResolvedRefs, statuses[0].Conditions[1].Type)
	require.Equal(t, v1alpha1.ReasonNotFound, statuses[0].Conditions[1].Reason)
	require.Contains(t, statuses[0].Conditions[1].Message, "spec.servers[0].tls.credentialName: Secret lambdamesh-system/certificate")
}
