package proxy

import (
	"fmt"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	corsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	jwtv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/jwt_authn/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/types/known/anypb"
)

// filter is an HTTP filter. It returns false when it has answered the request.
type filter interface {
	decode(e *exchange, override any) bool
}

// filterEntry is a filter in its place.
type filterEntry struct {
	name     string
	filter   filter
	disabled bool // unless a route enables it
}

// filterOverride is what a route, virtual host or route table says about the
// filter with that name.
type filterOverride struct {
	disabled bool
	config   any // *jwtOverride, *rbacEngine or *corsPolicy; nil: as configured
}

type filterOverrides map[string]filterOverride

func typeURL(name string) string { return "type.googleapis.com/" + name }

func compileFilters(at string, list []*hcmv3.HttpFilter) ([]filterEntry, error) {
	var out []filterEntry
	for i, f := range list {
		where := fmt.Sprintf("%s[%s]", at, f.GetName())
		config := f.GetTypedConfig()
		entry := filterEntry{name: f.GetName(), disabled: f.GetDisabled()}
		var err error
		switch config.GetTypeUrl() {
		case typeURL("envoy.extensions.filters.http.router.v3.Router"):
			var c routerv3.Router
			if err = unmarshal(where, config, &c); err == nil {
				err = allow(where, &c, "dynamic_stats", "start_child_span", "suppress_envoy_headers", "suppress_grpc_request_failure_code_stats")
			}
			if err == nil && i != len(list)-1 {
				err = fmt.Errorf("%s: the router must be the last filter", where)
			}
			if err != nil {
				return nil, err
			}
			return out, nil
		case typeURL("envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication"):
			var c jwtv3.JwtAuthentication
			if err = unmarshal(where, config, &c); err == nil {
				entry.filter, err = compileJWT(where, &c)
			}
		case typeURL("envoy.extensions.filters.http.rbac.v3.RBAC"):
			var c rbacv3.RBAC
			if err = unmarshal(where, config, &c); err == nil {
				var engine *rbacEngine
				engine, err = compileRBAC(where, &c)
				entry.filter = rbacFilter{engine}
			}
		case typeURL("envoy.extensions.filters.http.cors.v3.Cors"):
			entry.filter = corsFilter{}
		default:
			if inert(config) || f.GetIsOptional() {
				continue
			}
			err = fmt.Errorf("%s: %s is not supported", where, config.GetTypeUrl())
		}
		if err != nil {
			return nil, err
		}
		out = append(out, entry)
	}
	return nil, fmt.Errorf("%s: the router is missing", at)
}

func compileOverrides(at string, configs map[string]*anypb.Any) (filterOverrides, error) {
	if len(configs) == 0 {
		return nil, nil
	}
	out := make(filterOverrides, len(configs))
	for name, config := range configs {
		where := fmt.Sprintf("%s.typed_per_filter_config[%s]", at, name)
		var o filterOverride
		optional := false
		if config.GetTypeUrl() == typeURL("envoy.config.route.v3.FilterConfig") {
			var wrapped routev3.FilterConfig
			if err := unmarshal(where, config, &wrapped); err != nil {
				return nil, err
			}
			o.disabled, optional, config = wrapped.GetDisabled(), wrapped.GetIsOptional(), wrapped.GetConfig()
		}
		if !o.disabled && config != nil {
			known, err := compileOverride(where, config, &o)
			if err != nil {
				return nil, err
			}
			if !known {
				if optional || inert(config) {
					continue
				}
				return nil, fmt.Errorf("%s: %s is not supported", where, config.GetTypeUrl())
			}
		}
		out[name] = o
	}
	return out, nil
}

func compileOverride(at string, config *anypb.Any, o *filterOverride) (known bool, err error) {
	switch config.GetTypeUrl() {
	case typeURL("envoy.extensions.filters.http.jwt_authn.v3.PerRouteConfig"):
		var c jwtv3.PerRouteConfig
		if err := unmarshal(at, config, &c); err != nil {
			return true, err
		}
		o.disabled = c.GetDisabled()
		o.config = jwtOverride(c.GetRequirementName())
	case typeURL("envoy.extensions.filters.http.rbac.v3.RBACPerRoute"):
		var c rbacv3.RBACPerRoute
		if err := unmarshal(at, config, &c); err != nil {
			return true, err
		}
		if c.GetRbac() == nil { // "If absent, RBAC policy will be disabled for this route."
			o.disabled = true
			return true, nil
		}
		o.config, err = compileRBAC(at+".rbac", c.GetRbac())
	case typeURL("envoy.extensions.filters.http.cors.v3.CorsPolicy"):
		var c corsv3.CorsPolicy
		if err := unmarshal(at, config, &c); err != nil {
			return true, err
		}
		o.config, err = compileCORS(at, &c)
	default:
		return false, nil
	}
	return true, err
}

// override returns the most specific override for a filter.
func (e *exchange) override(name string) (filterOverride, bool) {
	if e.route == nil {
		return filterOverride{}, false
	}
	if e.weighted != nil {
		if o, ok := e.weighted.filters[name]; ok {
			return o, true
		}
	}
	for _, level := range [...]filterOverrides{e.route.filters, e.vhost.filters, e.table.filters} {
		if o, ok := level[name]; ok {
			return o, true
		}
	}
	return filterOverride{}, false
}

// runFilters returns false when one of them has answered.
func (e *exchange) runFilters() bool {
	for i := range e.hcm.filters {
		f := &e.hcm.filters[i]
		o, ok := e.override(f.name)
		if ok && o.disabled || !ok && f.disabled {
			continue
		}
		if !f.filter.decode(e, o.config) {
			return false
		}
	}
	return true
}
