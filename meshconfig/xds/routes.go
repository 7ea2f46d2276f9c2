package xds

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	corsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	jwtv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/jwt_authn/v3"
	previoushostsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/previous_hosts/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/lambdamesh/lambdamesh/meshconfig/ir"
	"github.com/lambdamesh/lambdamesh/pkg/apis/headers"
)

// untrustedHeaders are the ones that the gateway alone may set, and those that
// change what Envoy does when a client sends them.
func untrustedHeaders() []string { return append(headers.FromGateway(), headers.Steering()...) }

func (b *builder) virtualHost(name string, domains []string, vh *ir.VirtualHost) *routev3.VirtualHost {
	out := &routev3.VirtualHost{Name: name, Domains: domains, RetryPolicy: b.retryPolicy(ir.DefaultRetries())}
	if vh.CORS != nil {
		out.TypedPerFilterConfig = map[string]*anypb.Any{filterCORS: b.any(corsPolicy(vh.CORS))}
	}
	out.Routes = append(out.Routes, ambiguousPath(), ambiguousMethod())
	for i := range vh.Rules {
		out.Routes = append(out.Routes, b.route(&vh.Rules[i]))
	}
	out.Routes = append(out.Routes, notFound("no rule of this host matches the request"))
	return out
}

// ambiguousPath refuses what rules could decide otherwise than a backend.
func ambiguousPath() *routev3.Route {
	plain := header(":path", regex(ir.UnambiguousTarget()))
	plain.InvertMatch = true
	return &routev3.Route{
		Name: "ambiguous-path",
		Match: &routev3.RouteMatch{
			PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"},
			Headers:       []*routev3.HeaderMatcher{plain},
		},
		Action: direct(400, ir.AmbiguousTarget),
	}
}

func ambiguousMethod() *routev3.Route {
	return &routev3.Route{
		Name: "ambiguous-method",
		Match: &routev3.RouteMatch{
			PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"},
			Headers:       []*routev3.HeaderMatcher{header(":method", regex(ir.LowerCaseMethod()))},
		},
		Action: direct(400, ir.AmbiguousMethod),
	}
}

// unknownHost answers for every host that no APIRule has.
func unknownHost() *routev3.VirtualHost {
	return &routev3.VirtualHost{Name: "unknown-host", Domains: []string{"*"}, Routes: []*routev3.Route{notFound("unknown host")}}
}

func notFound(body string) *routev3.Route {
	return &routev3.Route{
		Name:   "not-found",
		Match:  &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}},
		Action: direct(404, body),
	}
}

func direct(status uint32, body string) *routev3.Route_DirectResponse {
	return &routev3.Route_DirectResponse{DirectResponse: &routev3.DirectResponseAction{
		Status: status,
		Body:   &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: body}},
	}}
}

func (b *builder) route(r *ir.Rule) *routev3.Route {
	out := &routev3.Route{Name: r.ID, Match: match(r)}
	if r.Closed != nil {
		out.Action = direct(r.Closed.Status, "this rule is closed until its configuration is repaired ("+r.Closed.Reason+")")
		return out
	}
	filters := map[string]*anypb.Any{}
	if r.JWT != nil {
		filters[filterJWT] = b.any(&jwtv3.PerRouteConfig{RequirementSpecifier: &jwtv3.PerRouteConfig_RequirementName{
			RequirementName: requirementName(providerNames(r.JWT)),
		}})
	}
	if r.JWT != nil || r.ClientIPs != nil {
		filters[filterRBAC] = b.any(authorization(r))
	}
	b.perRoute(r, filters)
	if len(filters) > 0 {
		out.TypedPerFilterConfig = filters
	}
	out.RequestHeadersToRemove = r.RequestHeaders.Remove
	out.RequestHeadersToAdd = append(setHeaders(r.RequestHeaders.Set), setHeader(ir.Header{Name: headers.Rule, Value: r.ID}))
	out.ResponseHeadersToRemove = r.ResponseHeaders.Remove
	out.ResponseHeadersToAdd = setHeaders(r.ResponseHeaders.Set)
	if r.Redirect != nil {
		out.Action = &routev3.Route_Redirect{Redirect: redirect(r.Redirect)}
		return out
	}
	out.Action = &routev3.Route_Route{Route: b.action(r)}
	return out
}

func redirect(r *ir.Redirect) *routev3.RedirectAction {
	codes := map[uint32]routev3.RedirectAction_RedirectResponseCode{
		301: routev3.RedirectAction_MOVED_PERMANENTLY, 302: routev3.RedirectAction_FOUND, 303: routev3.RedirectAction_SEE_OTHER,
		307: routev3.RedirectAction_TEMPORARY_REDIRECT, 308: routev3.RedirectAction_PERMANENT_REDIRECT,
	}
	out := &routev3.RedirectAction{HostRedirect: r.Host, PortRedirect: r.Port, ResponseCode: codes[r.Code]}
	if r.Scheme != "" {
		out.SchemeRewriteSpecifier = &routev3.RedirectAction_SchemeRedirect{SchemeRedirect: r.Scheme}
	}
	if r.Path != "" {
		out.PathRewriteSpecifier = &routev3.RedirectAction_PathRedirect{PathRedirect: r.Path}
	}
	return out
}

func match(r *ir.Rule) *routev3.RouteMatch {
	out := &routev3.RouteMatch{}
	switch path := r.Path.Pattern(); path.Kind {
	case ir.MatchExact:
		out.PathSpecifier = &routev3.RouteMatch_Path{Path: path.Value}
	case ir.MatchPrefix:
		out.PathSpecifier = &routev3.RouteMatch_Prefix{Prefix: path.Value}
	default:
		out.PathSpecifier = &routev3.RouteMatch_SafeRegex{SafeRegex: re2(path.Value)}
	}
	if method, asked := r.MethodMatch(); asked {
		out.Headers = append(out.Headers, header(":method", stringMatch(method)))
	}
	for _, h := range r.Headers {
		switch h.Kind {
		case ir.MatchPresent, ir.MatchAbsent:
			out.Headers = append(out.Headers, &routev3.HeaderMatcher{
				Name:                 h.Name,
				HeaderMatchSpecifier: &routev3.HeaderMatcher_PresentMatch{PresentMatch: h.Kind == ir.MatchPresent},
			})
		default:
			out.Headers = append(out.Headers, header(h.Name, stringMatch(h.StringMatch)))
		}
	}
	return out
}

func header(name string, m *matcherv3.StringMatcher) *routev3.HeaderMatcher {
	return &routev3.HeaderMatcher{Name: name, HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: m}}
}

func stringMatch(m ir.StringMatch) *matcherv3.StringMatcher {
	switch m.Kind {
	case ir.MatchPrefix:
		return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: m.Value}}
	case ir.MatchRegex:
		return regex(m.Value)
	default:
		return exact(m.Value)
	}
}

func (b *builder) action(r *ir.Rule) *routev3.RouteAction {
	out := &routev3.RouteAction{Timeout: durationpb.New(time.Duration(r.Timeout))}
	if time.Duration(r.Timeout) > streamIdleTimeout {
		out.IdleTimeout = out.Timeout // a lambda may be silent as long as it may run
	}
	if len(r.Backends) == 1 {
		out.ClusterSpecifier = &routev3.RouteAction_Cluster{Cluster: clusterNameOf(r.Backends[0].Destination)}
	} else {
		weighted := &routev3.WeightedCluster{}
		for _, backend := range r.Backends {
			weighted.Clusters = append(weighted.Clusters, &routev3.WeightedCluster_ClusterWeight{
				Name:   clusterNameOf(backend.Destination),
				Weight: wrapperspb.UInt32(backend.Weight),
			})
		}
		out.ClusterSpecifier = &routev3.RouteAction_WeightedClusters{WeightedClusters: weighted}
	}
	if r.Rewrite != nil && r.Rewrite.Host != "" {
		out.HostRewriteSpecifier = &routev3.RouteAction_HostRewriteLiteral{HostRewriteLiteral: r.Rewrite.Host}
	}
	if path, rewritten := r.PathRewrite(); rewritten {
		if path.Regex != "" {
			out.RegexRewrite = &matcherv3.RegexMatchAndSubstitute{Pattern: re2(path.Regex), Substitution: path.Substitution}
		} else {
			out.PrefixRewrite = path.Literal
		}
	}
	if r.Mirror != nil {
		out.RequestMirrorPolicies = []*routev3.RouteAction_RequestMirrorPolicy{{
			Cluster: clusterNameOf(r.Mirror.Destination),
			// As istiod says it: a copy is what the backend gets.
			DisableShadowHostSuffixAppend: true,
			RuntimeFraction:               &corev3.RuntimeFractionalPercent{DefaultValue: &typev3.FractionalPercent{Numerator: r.Mirror.Percent}},
		}}
	}
	if r.Retries != nil {
		out.RetryPolicy = b.retryPolicy(r.Retries)
	}
	return out
}

// retryPolicy tries again at hosts that were not tried, as istiod's does.
func (b *builder) retryPolicy(r *ir.Retries) *routev3.RetryPolicy {
	out := &routev3.RetryPolicy{
		RetryOn:    strings.Join(r.RetryOn, ","),
		NumRetries: wrapperspb.UInt32(r.Attempts),
		RetryHostPredicate: []*routev3.RetryPolicy_RetryHostPredicate{{
			Name:       "envoy.retry_host_predicates.previous_hosts",
			ConfigType: &routev3.RetryPolicy_RetryHostPredicate_TypedConfig{TypedConfig: b.any(&previoushostsv3.PreviousHostsPredicate{})},
		}},
		HostSelectionRetryMaxAttempts: hostSelections,
	}
	if r.PerTryTimeout > 0 {
		out.PerTryTimeout = durationpb.New(time.Duration(r.PerTryTimeout))
	}
	return out
}

func setHeaders(set []ir.Header) []*corev3.HeaderValueOption {
	var all []*corev3.HeaderValueOption
	for _, h := range set {
		all = append(all, setHeader(h))
	}
	return all
}

// setHeader replaces what is there.
func setHeader(h ir.Header) *corev3.HeaderValueOption {
	return &corev3.HeaderValueOption{
		Header:         &corev3.HeaderValue{Key: h.Name, Value: h.Format()},
		AppendAction:   corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
		KeepEmptyValue: true,
	}
}

func corsPolicy(c *ir.CORS) *corsv3.CorsPolicy {
	out := &corsv3.CorsPolicy{
		AllowMethods:     strings.Join(c.AllowMethods, ","),
		AllowHeaders:     strings.Join(c.AllowHeaders, ","),
		ExposeHeaders:    strings.Join(c.ExposeHeaders, ","),
		AllowCredentials: wrapperspb.Bool(c.AllowCredentials),
	}
	if c.MaxAge > 0 {
		out.MaxAge = strconv.Itoa(int(time.Duration(c.MaxAge).Seconds()))
	}
	for _, o := range c.AllowOrigins {
		out.AllowOriginStringMatch = append(out.AllowOriginStringMatch, stringMatch(o))
	}
	return out
}

// inboundRoutes take what a gateway says about a request from a gateway alone.
func inboundRoutes(cluster string, allow []ir.Allow) *routev3.RouteConfiguration {
	host := &routev3.VirtualHost{Name: cluster, Domains: []string{"*"}}
	for _, a := range allow {
		if a.Reason == ir.AllowGateway {
			host.Routes = append(host.Routes, &routev3.Route{
				Name: "gateway",
				Match: &routev3.RouteMatch{
					PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"},
					// Written by this listener's connection manager (SANITIZE_SET), with the
					// URI as the last part.
					Headers: []*routev3.HeaderMatcher{header(headers.ClientCert, &matcherv3.StringMatcher{
						MatchPattern: &matcherv3.StringMatcher_Suffix{Suffix: ";URI=" + a.Principal},
					})},
				},
				Action: toCluster(cluster),
			})
		}
	}
	host.Routes = append(host.Routes, &routev3.Route{
		Name:                   "default",
		Match:                  &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}},
		RequestHeadersToRemove: headers.FromGateway(),
		Action:                 toCluster(cluster),
	})
	return &routev3.RouteConfiguration{Name: cluster, VirtualHosts: []*routev3.VirtualHost{host}}
}

// toCluster without a limit of its own: the caller and the application have
// theirs.
func toCluster(cluster string) *routev3.Route_Route {
	return &routev3.Route_Route{Route: &routev3.RouteAction{
		ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: cluster},
		Timeout:          durationpb.New(0),
	}}
}

// egressRoutes are the destinations a workload may call, under every name a
// cluster's DNS would know them by.
func (b *builder) egressRoutes(name, namespace string, out ir.Egress) {
	config := &routev3.RouteConfiguration{Name: name}
	taken := map[string]bool{}
	// Names of the own namespace come before aliases, as in DNS's search list.
	for _, own := range []bool{true, false} {
		for _, key := range out.Destinations {
			d := b.destination(key)
			if (d.Namespace == namespace) != own {
				continue
			}
			config.VirtualHosts = append(config.VirtualHosts, &routev3.VirtualHost{
				Name:    key,
				Domains: egressDomains(d, own, taken),
				Routes: []*routev3.Route{{
					Name:   "default",
					Match:  &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}},
					Action: toCluster(b.cluster(key)),
				}},
				RetryPolicy: b.retryPolicy(ir.DefaultRetries()),
			})
		}
	}
	config.VirtualHosts = append(config.VirtualHosts, &routev3.VirtualHost{
		Name: "unknown-host", Domains: []string{"*"},
		Routes: []*routev3.Route{notFound("this workload may not reach that host, or there is none")},
	})
	slices.SortFunc(config.VirtualHosts, byName)
	b.out.Routes = append(b.out.Routes, config)
}

// egressDomains with the port, and for port 80 without. Ports matter here: one
// Service may have several.
func egressDomains(d *ir.Destination, own bool, taken map[string]bool) []string {
	names := append([]string{d.Name + "." + d.Namespace + ".svc", d.Name + "." + d.Namespace, d.Hostname()}, d.Aliases...)
	if own {
		names = append(names, d.Name)
	}
	var all []string
	for _, n := range names {
		domains := []string{fmt.Sprintf("%s:%d", n, d.Port)}
		if d.Port == 80 {
			domains = append(domains, n)
		}
		for _, domain := range domains {
			if !taken[domain] {
				taken[domain] = true
				all = append(all, domain)
			}
		}
	}
	slices.Sort(all)
	return all
}
