package istio

import (
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	networking "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lambdamesh/lambdamesh/meshconfig/ir"
	"github.com/lambdamesh/lambdamesh/pkg/apis/headers"
)

const bearer = "Bearer "

func (w *writer) virtualService(g *ir.Gateway, vh *ir.VirtualHost) Object {
	vs := &networkingv1.VirtualService{
		TypeMeta:   metav1.TypeMeta{APIVersion: networkingv1.SchemeGroupVersion.String(), Kind: "VirtualService"},
		ObjectMeta: meta("apirule-", vh.Owner),
	}
	vs.Spec.Hosts = vh.Hosts
	vs.Spec.Gateways = []string{g.Key()}
	// istiod makes of the first a matcher of Envoy's pseudo header, turned around.
	path := &networking.HTTPMatchRequest{WithoutHeaders: map[string]*networking.StringMatch{":path": regex(ir.UnambiguousTarget())}}
	method := &networking.HTTPMatchRequest{Method: regex(ir.LowerCaseMethod())}
	vs.Spec.Http = []*networking.HTTPRoute{
		answer("ambiguous-path", 400, ir.AmbiguousTarget, path),
		answer("ambiguous-method", 400, ir.AmbiguousMethod, method),
	}
	for i := range vh.Rules {
		vs.Spec.Http = append(vs.Spec.Http, w.routes(g, &vh.Rules[i])...)
	}
	vs.Spec.Http = append(vs.Spec.Http, answer("not-found", 404, "no rule of this host matches the request"))
	if cors := corsPolicy(vh.CORS); cors != nil {
		for _, r := range vs.Spec.Http {
			r.CorsPolicy = cors
		}
	}
	return vs
}

// answer without asking a backend.
func answer(name string, status uint32, body string, matches ...*networking.HTTPMatchRequest) *networking.HTTPRoute {
	return &networking.HTTPRoute{
		Name:  name,
		Match: matches,
		DirectResponse: &networking.HTTPDirectResponse{
			Status: status,
			Body:   &networking.HTTPBody{Specifier: &networking.HTTPBody_String_{String_: body}},
		},
	}
}

func (w *writer) routes(g *ir.Gateway, r *ir.Rule) []*networking.HTTPRoute {
	switch {
	case r.Closed != nil:
		return []*networking.HTTPRoute{closed(r, r.Closed.Status, r.Closed.Reason)}
	case w.lacks(g, r) != "":
		return []*networking.HTTPRoute{closed(r, 503, "NotSupported")}
	case r.JWT == nil:
		return []*networking.HTTPRoute{w.route(r)}
	case !w.enforceable(r):
		return []*networking.HTTPRoute{closed(r, 503, "NotSupported")}
	}
	missing, other := match(r), match(r)
	missing.WithoutHeaders = with(missing.WithoutHeaders, "authorization", &networking.StringMatch{})
	other.WithoutHeaders = with(other.WithoutHeaders, "authorization", prefix(bearer))
	unauthorized := answer(r.ID+"/no-token", 401, "a bearer token is needed", missing, other)
	unauthorized.Headers = &networking.Headers{Response: &networking.Headers_HeaderOperations{
		Set: map[string]string{"www-authenticate": "Bearer"},
	}}
	return []*networking.HTTPRoute{unauthorized, w.route(r)}
}

func closed(r *ir.Rule, status uint32, reason string) *networking.HTTPRoute {
	return answer(r.ID, status, "this rule is closed until its configuration is repaired ("+reason+")", match(r))
}

// enforceable says whether every backend is a workload whose sidecar checks the
// token. Others would be reached with any token, or none that is valid.
func (w *writer) enforceable(r *ir.Rule) bool {
	for _, key := range r.Destinations() {
		if w.destinations[key].Workload == "" {
			return false
		}
	}
	return len(r.Backends) > 0
}

// with adds a condition on a header. The map holds one for each name, so further
// ones take the name in another case: istiod passes keys on as they are
// (TranslateRouteMatch), and to Envoy they name the same header. The translation
// allows no more conditions than a name has cases.
func with(m map[string]*networking.StringMatch, name string, value *networking.StringMatch) map[string]*networking.StringMatch {
	if m == nil {
		m = map[string]*networking.StringMatch{}
	}
	key := name
	for n := 1; m[key] != nil && !proto.Equal(m[key], value); n++ {
		key = inCase(name, n)
	}
	m[key] = value
	return m
}

// inCase is the n-th way to write a lower-case name: each bit of n is a letter's.
func inCase(name string, n int) string {
	text := []byte(name)
	for i, c := range text {
		if c < 'a' || c > 'z' {
			continue
		}
		if n&1 == 1 {
			text[i] = c - 'a' + 'A'
		}
		n >>= 1
	}
	return string(text)
}

func (w *writer) route(r *ir.Rule) *networking.HTTPRoute {
	out := &networking.HTTPRoute{
		Name:    r.ID,
		Match:   []*networking.HTTPMatchRequest{match(r)},
		Timeout: durationpb.New(time.Duration(r.Timeout)),
		// Said explicitly: istiod would retry more than what no endpoint has seen.
		Retries: retries(r.Retries),
		Headers: &networking.Headers{
			Request:  edits(r.RequestHeaders),
			Response: edits(r.ResponseHeaders),
		},
	}
	request := out.Headers.Request
	if request.Set == nil {
		request.Set = map[string]string{}
	}
	request.Remove = append(request.Remove, append(headers.FromGateway(), headers.ClientCert)...)
	request.Set[headers.Rule] = r.ID
	if r.JWT != nil {
		request.Set[headers.Token] = "%REQ(authorization)%"
	}
	if len(r.ResponseHeaders.Set)+len(r.ResponseHeaders.Remove) == 0 {
		out.Headers.Response = nil
	}
	if r.Redirect != nil {
		return redirect(r, out)
	}
	to := func(key string) *networking.Destination {
		d := w.destinations[key]
		destination := &networking.Destination{Host: d.Hostname(), Port: &networking.PortSelector{Number: d.Port}}
		if r.JWT != nil {
			destination.Subset = subsetMutualTLS
		}
		return destination
	}
	if r.Mirror != nil {
		out.Mirrors = []*networking.HTTPMirrorPolicy{{
			Destination: to(r.Mirror.Destination), Percentage: &networking.Percent{Value: float64(r.Mirror.Percent)},
		}}
	}
	for _, b := range r.Backends {
		destination := &networking.HTTPRouteDestination{Destination: to(b.Destination)}
		if len(r.Backends) > 1 {
			destination.Weight = int32(b.Weight)
		}
		out.Route = append(out.Route, destination)
	}
	out.Rewrite = rewrite(r)
	return out
}

func retries(r *ir.Retries) *networking.HTTPRetry {
	if r == nil {
		r = ir.DefaultRetries()
	}
	out := &networking.HTTPRetry{Attempts: int32(r.Attempts)}
	if r.Attempts == 0 {
		return out // istiod takes nothing else then
	}
	out.RetryOn = strings.Join(r.RetryOn, ",")
	if r.PerTryTimeout > 0 {
		out.PerTryTimeout = durationpb.New(time.Duration(r.PerTryTimeout))
	}
	return out
}

// redirect is the route that answers for a backend: istiod takes no timeout and
// no retries there.
func redirect(r *ir.Rule, route *networking.HTTPRoute) *networking.HTTPRoute {
	route.Timeout, route.Retries = nil, nil
	if route.Headers != nil {
		route.Headers.Request = nil
	}
	route.Redirect = &networking.HTTPRedirect{
		Scheme: r.Redirect.Scheme, Authority: r.Redirect.Host, Uri: r.Redirect.Path, RedirectCode: r.Redirect.Code,
	}
	if r.Redirect.Port > 0 {
		route.Redirect.RedirectPort = &networking.HTTPRedirect_Port{Port: r.Redirect.Port}
	}
	return route
}

func rewrite(r *ir.Rule) *networking.HTTPRewrite {
	if r.Rewrite == nil {
		return nil
	}
	out := &networking.HTTPRewrite{Authority: r.Rewrite.Host}
	switch path, rewritten := r.PathRewrite(); {
	case !rewritten:
	case path.Regex != "":
		out.UriRegexRewrite = &networking.RegexRewrite{Match: path.Regex, Rewrite: path.Substitution}
	default:
		out.Uri = path.Literal
	}
	return out
}

func edits(e ir.HeaderEdits) *networking.Headers_HeaderOperations {
	out := &networking.Headers_HeaderOperations{Remove: append([]string(nil), e.Remove...)}
	for _, h := range e.Set {
		if out.Set == nil {
			out.Set = map[string]string{}
		}
		out.Set[h.Name] = h.Format()
	}
	return out
}

func match(r *ir.Rule) *networking.HTTPMatchRequest {
	out := &networking.HTTPMatchRequest{Uri: stringMatch(r.Path.Pattern())}
	if method, asked := r.MethodMatch(); asked {
		out.Method = stringMatch(method)
	}
	for _, h := range r.Headers {
		switch h.Kind {
		case ir.MatchAbsent:
			out.WithoutHeaders = with(out.WithoutHeaders, h.Name, &networking.StringMatch{})
		case ir.MatchPresent:
			out.Headers = with(out.Headers, h.Name, &networking.StringMatch{})
		default:
			out.Headers = with(out.Headers, h.Name, stringMatch(h.StringMatch))
		}
	}
	return out
}

func stringMatch(m ir.StringMatch) *networking.StringMatch {
	switch m.Kind {
	case ir.MatchPrefix:
		return prefix(m.Value)
	case ir.MatchRegex:
		return regex(m.Value)
	default:
		return exact(m.Value)
	}
}

func exact(v string) *networking.StringMatch {
	return &networking.StringMatch{MatchType: &networking.StringMatch_Exact{Exact: v}}
}

func prefix(v string) *networking.StringMatch {
	return &networking.StringMatch{MatchType: &networking.StringMatch_Prefix{Prefix: v}}
}

func regex(v string) *networking.StringMatch {
	return &networking.StringMatch{MatchType: &networking.StringMatch_Regex{Regex: v}}
}

func corsPolicy(c *ir.CORS) *networking.CorsPolicy {
	if c == nil {
		return nil
	}
	out := &networking.CorsPolicy{
		AllowMethods:     c.AllowMethods,
		AllowHeaders:     c.AllowHeaders,
		ExposeHeaders:    c.ExposeHeaders,
		AllowCredentials: wrapperspb.Bool(c.AllowCredentials),
	}
	if c.MaxAge > 0 {
		out.MaxAge = durationpb.New(time.Duration(c.MaxAge))
	}
	for _, o := range c.AllowOrigins {
		out.AllowOrigins = append(out.AllowOrigins, stringMatch(o))
	}
	return out
}
