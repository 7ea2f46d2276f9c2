package compile

import (
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"

	"github.com/lambdamesh/lambdamesh/meshconfig/proxy/filters"
	"github.com/lambdamesh/lambdamesh/meshconfig/proxy/request"
	"github.com/lambdamesh/lambdamesh/meshconfig/proxy/strict"
)

// RouteTable is a compiled RouteConfiguration.
type RouteTable struct {
	name       string
	exact      map[string]*VirtualHost
	suffixes   []wildcard // longest first, as Envoy searches them
	prefixes   []wildcard
	any        *VirtualHost
	ignorePort bool
	// hostsApart: hosts are served by themselves (VHDS); complete: some were.
	hostsApart, complete bool

	Request  request.Mutation
	Response request.Mutation
	Filters  filters.Overrides
	// leastSpecificFirst reverses the order in which the levels change headers.
	LeastSpecificFirst bool
}

type wildcard struct {
	text string
	host *VirtualHost
}

// VirtualHost is a compiled VirtualHost.
type VirtualHost struct {
	name       string
	routes     []*Route
	RequireTLS routev3.VirtualHost_TlsRequirementType
	Request    request.Mutation
	Response   request.Mutation
	Filters    filters.Overrides
	// countAttempts tells the upstream which attempt it sees.
	CountAttempts bool
}

// Route is a compiled Route with one of its actions.
type Route struct {
	Name     string
	match    request.Match
	rest     []request.Match // headers and query parameters
	Request  request.Mutation
	Response request.Mutation
	Filters  filters.Overrides

	Direct   *directResponse
	Redirect *redirect
	Forward  *forward
}

type directResponse struct {
	Status int
	Body   string
}

// forward is a compiled RouteAction.
type forward struct {
	cluster     string
	weighted    []WeightedCluster
	totalWeight uint32
	NotFound    int

	prefixRewrite string
	matchedPrefix string // what prefix_rewrite replaces; "" with a regex: everything
	exactMatch    bool
	regexRewrite  *regexp.Regexp
	substitution  string
	HostRewrite   string
	AutoHost      bool
	AppendHost    bool

	Timeout     time.Duration
	IdleTimeout *time.Duration
	Retry       *RetryPolicy
	Upgrades    map[string]bool
	Mirrors     []Mirror
}

// WeightedCluster is one of several clusters of a route.
type WeightedCluster struct {
	name        string
	weight      uint32
	Request     request.Mutation
	Response    request.Mutation
	Filters     filters.Overrides
	HostRewrite string
}

func compileRouteTable(c *routev3.RouteConfiguration) (*RouteTable, error) {
	at := fmt.Sprintf("RouteConfiguration %q", c.GetName())
	if err := strict.Allow(at, c, "name", "virtual_hosts", "response_headers_to_add", "response_headers_to_remove", "request_headers_to_add",
		"request_headers_to_remove", "most_specific_header_mutations_wins", "validate_clusters", "max_direct_response_body_size_bytes",
		"ignore_port_in_host_matching", "typed_per_filter_config", "metadata", "vhds"); err != nil {
		return nil, err
	}
	t := &RouteTable{
		name: c.GetName(), exact: map[string]*VirtualHost{},
		ignorePort: c.GetIgnorePortInHostMatching(), LeastSpecificFirst: c.GetMostSpecificHeaderMutationsWins(),
	}
	if source := c.GetVhds(); source != nil {
		t.hostsApart = true
		if err := strict.OverADS(at+".vhds.config_source", source.GetConfigSource()); err != nil {
			return nil, err
		}
	}
	var errs []error
	note := func(err error) { errs = append(errs, err) }
	var err error
	t.Request, err = request.CompileMutation(at+".request_headers_to_add", c.GetRequestHeadersToAdd(), c.GetRequestHeadersToRemove())
	note(err)
	t.Response, err = request.CompileMutation(at+".response_headers_to_add", c.GetResponseHeadersToAdd(), c.GetResponseHeadersToRemove())
	note(err)
	t.Filters, err = filters.CompileOverrides(at, c.GetTypedPerFilterConfig())
	note(err)

	seen, shared := map[string]bool{}, request.Regexes{}
	for _, v := range c.GetVirtualHosts() {
		host, err := compileVirtualHost(fmt.Sprintf("%s: virtual host %q", at, v.GetName()), v, shared)
		if err != nil {
			note(err)
			continue
		}
		for _, domain := range v.GetDomains() {
			domain = strings.ToLower(domain)
			if seen[domain] {
				note(fmt.Errorf("%s: virtual host %q: the domain %q is taken by another virtual host", at, v.GetName(), domain))
			}
			seen[domain] = true
			t.set(domain, host)
		}
	}
	t.sort()
	return t, errors.Join(errs...)
}

func compileVirtualHost(at string, v *routev3.VirtualHost, shared request.Regexes) (*VirtualHost, error) {
	if err := strict.Allow(at, v, "name", "domains", "routes", "require_tls", "request_headers_to_add", "request_headers_to_remove",
		"response_headers_to_add", "response_headers_to_remove", "typed_per_filter_config", "retry_policy", "metadata",
		"virtual_clusters", "include_request_attempt_count"); err != nil { // virtual clusters are for statistics
		return nil, err
	}
	host := &VirtualHost{name: v.GetName(), RequireTLS: v.GetRequireTls(), CountAttempts: v.GetIncludeRequestAttemptCount()}
	var errs []error
	note := func(err error) { errs = append(errs, err) }
	var err error
	host.Request, err = request.CompileMutation(at+".request_headers_to_add", v.GetRequestHeadersToAdd(), v.GetRequestHeadersToRemove())
	note(err)
	host.Response, err = request.CompileMutation(at+".response_headers_to_add", v.GetResponseHeadersToAdd(), v.GetResponseHeadersToRemove())
	note(err)
	host.Filters, err = filters.CompileOverrides(at, v.GetTypedPerFilterConfig())
	note(err)
	for i, r := range v.GetRoutes() {
		name := r.GetName()
		if name == "" {
			name = fmt.Sprint(i)
		}
		compiled, err := compileRoute(fmt.Sprintf("%s: route %q", at, name), r, v.GetRetryPolicy(), shared)
		note(err)
		host.routes = append(host.routes, compiled)
	}
	return host, errors.Join(errs...)
}

func compileRoute(at string, c *routev3.Route, retry *routev3.RetryPolicy, shared request.Regexes) (*Route, error) {
	if err := strict.Allow(at, c, "name", "match", "route", "redirect", "direct_response", "metadata", "decorator", "tracing", "stat_prefix",
		"typed_per_filter_config", "request_headers_to_add", "request_headers_to_remove", "response_headers_to_add", "response_headers_to_remove"); err != nil {
		return nil, err
	}
	r := &Route{Name: c.GetName()}
	var errs []error
	note := func(err error) { errs = append(errs, err) }
	var err error
	r.match, r.rest, err = shared.CompileRouteMatch(at+".match", c.GetMatch())
	note(err)
	r.Request, err = request.CompileMutation(at+".request_headers_to_add", c.GetRequestHeadersToAdd(), c.GetRequestHeadersToRemove())
	note(err)
	r.Response, err = request.CompileMutation(at+".response_headers_to_add", c.GetResponseHeadersToAdd(), c.GetResponseHeadersToRemove())
	note(err)
	r.Filters, err = filters.CompileOverrides(at, c.GetTypedPerFilterConfig())
	note(err)
	switch a := c.GetAction().(type) {
	case *routev3.Route_Route:
		r.Forward, err = compileForward(at+".route", a.Route, c.GetMatch(), retry)
	case *routev3.Route_Redirect:
		r.Redirect, err = compileRedirect(at+".redirect", a.Redirect, c.GetMatch())
	case *routev3.Route_DirectResponse:
		r.Direct, err = compileDirect(at+".direct_response", a.DirectResponse)
	default:
		err = fmt.Errorf("%s: only route, redirect and direct_response are supported", at)
	}
	note(err)
	return r, errors.Join(errs...)
}

func compileDirect(at string, d *routev3.DirectResponseAction) (*directResponse, error) {
	if err := strict.Allow(at, d, "status", "body"); err != nil {
		return nil, err
	}
	if s := d.GetStatus(); s < 200 || s > 599 {
		return nil, fmt.Errorf("%s: status %d is not supported", at, s)
	}
	body, err := strict.Inline(at+".body", d.GetBody())
	return &directResponse{Status: int(d.GetStatus()), Body: string(body)}, err
}

// defaultRouteTimeout is Envoy's for routes that set none.
const defaultRouteTimeout = 15 * time.Second

func compileForward(at string, a *routev3.RouteAction, match *routev3.RouteMatch, inherited *routev3.RetryPolicy) (*forward, error) {
	if err := strict.Allow(at, a, "cluster", "weighted_clusters", "cluster_not_found_response_code", "prefix_rewrite", "regex_rewrite",
		"host_rewrite_literal", "auto_host_rewrite", "append_x_forwarded_host", "timeout", "idle_timeout", "retry_policy",
		"upgrade_configs", "max_grpc_timeout", "max_stream_duration", "request_mirror_policies"); err != nil {
		return nil, err
	}
	f := &forward{
		NotFound:      http.StatusServiceUnavailable,
		Timeout:       strict.Duration(a.GetTimeout(), defaultRouteTimeout),
		prefixRewrite: a.GetPrefixRewrite(),
		HostRewrite:   a.GetHostRewriteLiteral(),
		AutoHost:      a.GetAutoHostRewrite().GetValue(),
		AppendHost:    a.GetAppendXForwardedHost(),
	}
	if a.GetIdleTimeout() != nil {
		d := a.GetIdleTimeout().AsDuration()
		f.IdleTimeout = &d
	}
	if d := a.GetMaxStreamDuration(); d != nil {
		// Istio sets all of it to the route's timeout, which is enforced anyway.
		if err := strict.Allow(at+".max_stream_duration", d, "max_stream_duration", "grpc_timeout_header_max", "grpc_timeout_header_offset"); err != nil {
			return nil, err
		}
		if m := d.GetMaxStreamDuration(); m != nil && m.AsDuration() != 0 {
			return nil, fmt.Errorf("%s.max_stream_duration: max_stream_duration is not supported", at)
		}
	}
	switch a.GetClusterNotFoundResponseCode() {
	case routev3.RouteAction_NOT_FOUND:
		f.NotFound = http.StatusNotFound
	case routev3.RouteAction_INTERNAL_SERVER_ERROR:
		f.NotFound = http.StatusInternalServerError
	}
	switch c := a.GetClusterSpecifier().(type) {
	case *routev3.RouteAction_Cluster:
		f.cluster = c.Cluster
	case *routev3.RouteAction_WeightedClusters:
		if err := compileWeighted(at+".weighted_clusters", c.WeightedClusters, f); err != nil {
			return nil, err
		}
	default:
		return nil, fmt.Errorf("%s: only cluster and weighted_clusters are supported", at)
	}
	if f.prefixRewrite != "" {
		switch p := match.GetPathSpecifier().(type) {
		case *routev3.RouteMatch_Prefix:
			f.matchedPrefix = p.Prefix
		case *routev3.RouteMatch_PathSeparatedPrefix:
			f.matchedPrefix = p.PathSeparatedPrefix
		case *routev3.RouteMatch_Path:
			f.matchedPrefix = p.Path
		default: // with a regular expression Envoy replaces the whole path
			f.exactMatch = true
		}
	}
	if r := a.GetRegexRewrite(); r != nil {
		if f.prefixRewrite != "" {
			return nil, fmt.Errorf("%s: prefix_rewrite and regex_rewrite exclude each other", at)
		}
		var err error
		if f.regexRewrite, f.substitution, err = compileRewrite(at+".regex_rewrite", r); err != nil {
			return nil, err
		}
	}
	policy := a.GetRetryPolicy()
	if policy == nil {
		policy = inherited
	}
	if policy != nil {
		var err error
		if f.Retry, err = compileRetry(at+".retry_policy", policy); err != nil {
			return nil, err
		}
	}
	for i, m := range a.GetRequestMirrorPolicies() {
		mirror, err := compileMirror(fmt.Sprintf("%s.request_mirror_policies[%d]", at, i), m)
		if err != nil {
			return nil, err
		}
		f.Mirrors = append(f.Mirrors, mirror)
	}
	for _, u := range a.GetUpgradeConfigs() {
		if err := strict.Allow(at+".upgrade_configs", u, "upgrade_type", "enabled"); err != nil {
			return nil, err
		}
		if f.Upgrades == nil {
			f.Upgrades = map[string]bool{}
		}
		f.Upgrades[strings.ToLower(u.GetUpgradeType())] = u.GetEnabled() == nil || u.GetEnabled().GetValue()
	}
	return f, nil
}

// Mirror is a cluster that gets copies of requests.
type Mirror struct {
	Cluster string
	Percent uint32
	// Suffix: the copies' Host ends in -shadow.
	Suffix bool
}

// compileMirror takes what says whether a copy's span is sampled: there is none.
func compileMirror(at string, m *routev3.RouteAction_RequestMirrorPolicy) (Mirror, error) {
	if err := strict.Allow(at, m, "cluster", "runtime_fraction", "disable_shadow_host_suffix_append", "trace_sampled"); err != nil {
		return Mirror{}, err
	}
	out := Mirror{Cluster: m.GetCluster(), Percent: 100, Suffix: !m.GetDisableShadowHostSuffixAppend()}
	if f := m.GetRuntimeFraction(); f != nil {
		per := map[typev3.FractionalPercent_DenominatorType]uint32{
			typev3.FractionalPercent_HUNDRED: 1, typev3.FractionalPercent_TEN_THOUSAND: 100, typev3.FractionalPercent_MILLION: 10_000,
		}[f.GetDefaultValue().GetDenominator()]
		if f.GetDefaultValue().GetNumerator()%per != 0 {
			return Mirror{}, fmt.Errorf("%s.runtime_fraction: only whole percents are supported", at)
		}
		out.Percent = min(f.GetDefaultValue().GetNumerator()/per, 100)
	}
	return out, nil
}

func compileWeighted(at string, w *routev3.WeightedCluster, f *forward) error {
	if err := strict.Allow(at, w, "clusters", "total_weight", "runtime_key_prefix"); err != nil {
		return err
	}
	for _, c := range w.GetClusters() {
		where := fmt.Sprintf("%s[%s]", at, c.GetName())
		if err := strict.Allow(where, c, "name", "weight", "request_headers_to_add", "request_headers_to_remove", "response_headers_to_add",
			"response_headers_to_remove", "typed_per_filter_config", "host_rewrite_literal"); err != nil {
			return err
		}
		one := WeightedCluster{name: c.GetName(), weight: c.GetWeight().GetValue(), HostRewrite: c.GetHostRewriteLiteral()}
		var errs [3]error
		one.Request, errs[0] = request.CompileMutation(where+".request_headers_to_add", c.GetRequestHeadersToAdd(), c.GetRequestHeadersToRemove())
		one.Response, errs[1] = request.CompileMutation(where+".response_headers_to_add", c.GetResponseHeadersToAdd(), c.GetResponseHeadersToRemove())
		one.Filters, errs[2] = filters.CompileOverrides(where, c.GetTypedPerFilterConfig())
		if err := errors.Join(errs[:]...); err != nil {
			return err
		}
		f.weighted = append(f.weighted, one)
		f.totalWeight += one.weight
	}
	if f.totalWeight == 0 {
		return fmt.Errorf("%s: the weights are all zero", at)
	}
	return nil
}

// compileRewrite turns RE2's \1 into Go's ${1}.
func compileRewrite(at string, r *matcherv3.RegexMatchAndSubstitute) (*regexp.Regexp, string, error) {
	re, err := regexp.Compile(r.GetPattern().GetRegex())
	if err != nil {
		return nil, "", fmt.Errorf("%s: %w", at, err)
	}
	var b strings.Builder
	s := r.GetSubstitution()
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '\\' && i+1 < len(s) && s[i+1] >= '0' && s[i+1] <= '9':
			fmt.Fprintf(&b, "${%c}", s[i+1])
			i++
		case s[i] == '\\' && i+1 < len(s) && s[i+1] == '\\':
			b.WriteByte('\\')
			i++
		case s[i] == '\\':
			return nil, "", fmt.Errorf("%s: substitution %q is not understood", at, s)
		case s[i] == '$':
			b.WriteString("$$")
		default:
			b.WriteByte(s[i])
		}
	}
	return re, b.String(), nil
}
