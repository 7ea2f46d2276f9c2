package filters

import (
	"fmt"
	"net/http"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/lambdamesh/lambdamesh/meshconfig/proxy/request"
	"github.com/lambdamesh/lambdamesh/meshconfig/proxy/strict"
)

// Filter is an HTTP filter at work.
type Filter interface {
	// Decode looks at a request, and may change it. It returns false when it has
	// answered. override is what the most specific of route, virtual host and
	// route table says about this filter; nil: nothing.
	Decode(req *request.Request, answer Answerer, override any) bool
}

// Answerer is what a filter may do beyond changing the request.
type Answerer interface {
	// Reply answers with a local reply, whose format the connection manager
	// decides; details say in one word why, extra adds headers.
	Reply(code int, details, body string, extra func(http.Header))
	// Empty answers without a body, with the headers of Header.
	Empty(code int)
	// Header is that of the answer.
	Header() http.Header
	// OnResponse has change called with the header of the answer, wherever that
	// comes from.
	OnResponse(change func(http.Header))
	// LimitBody has a body that turns out to be larger refused with 413.
	LimitBody(most int64)
	// Shared is what all requests with that key share, made by the first of them.
	// It may be forgotten when none has asked for it for a while.
	Shared(key string, make func() any) any
}

// kind is an HTTP filter that we have.
type kind struct {
	// config is the message that configures it, override the one by which a route
	// says otherwise.
	config, override string
	compile          func(at string, config *anypb.Any) (Filter, error)
	compileOverride  func(at string, config *anypb.Any) (Override, error)
}

// kinds has a line for each filter but the router.
func kinds() []kind {
	return []kind{apiKeyKind(), bufferKind(), corsKind(), jwtKind(), rateLimitKind(), rbacKind()}
}

// Entry is a filter in its place.
type Entry struct {
	Name     string
	Filter   Filter
	Disabled bool // unless a route enables it
}

// Override is what a route, virtual host or route table says about the
// filter with that name.
type Override struct {
	Disabled bool
	Config   any // as its filter takes it; nil: as configured
}

// Overrides are by name of the filter.
type Overrides map[string]Override

func typeURL(name string) string { return "type.googleapis.com/" + name }

// Compile reads the chain, which the router ends.
func Compile(at string, list []*hcmv3.HttpFilter) ([]Entry, error) {
	var out []Entry
	for i, f := range list {
		where := fmt.Sprintf("%s[%s]", at, f.GetName())
		config := f.GetTypedConfig()
		if config.GetTypeUrl() == typeURL("envoy.extensions.filters.http.router.v3.Router") {
			if i != len(list)-1 {
				return nil, fmt.Errorf("%s: the router must be the last filter", where)
			}
			var c routerv3.Router
			if err := strict.Unmarshal(where, config, &c); err != nil {
				return nil, err
			}
			return out, strict.Allow(where, &c, "dynamic_stats", "start_child_span", "suppress_envoy_headers", "suppress_grpc_request_failure_code_stats")
		}
		filter, known, err := compileFilter(where, config)
		switch {
		case err != nil:
			return nil, err
		case known:
			out = append(out, Entry{Name: f.GetName(), Filter: filter, Disabled: f.GetDisabled()})
		case !strict.Inert(config) && !f.GetIsOptional():
			return nil, fmt.Errorf("%s: %s is not supported", where, config.GetTypeUrl())
		}
	}
	return nil, fmt.Errorf("%s: the router is missing", at)
}

func compileFilter(at string, config *anypb.Any) (filter Filter, known bool, err error) {
	for _, k := range kinds() {
		if config.GetTypeUrl() == typeURL(k.config) {
			filter, err = k.compile(at, config)
			return filter, true, err
		}
	}
	return nil, false, nil
}

// CompileOverrides reads typed_per_filter_config.
func CompileOverrides(at string, configs map[string]*anypb.Any) (Overrides, error) {
	if len(configs) == 0 {
		return nil, nil
	}
	out := make(Overrides, len(configs))
	for name, config := range configs {
		where := fmt.Sprintf("%s.typed_per_filter_config[%s]", at, name)
		var o Override
		optional := false
		if config.GetTypeUrl() == typeURL("envoy.config.route.v3.FilterConfig") {
			var wrapped routev3.FilterConfig
			if err := strict.Unmarshal(where, config, &wrapped); err != nil {
				return nil, err
			}
			o.Disabled, optional, config = wrapped.GetDisabled(), wrapped.GetIsOptional(), wrapped.GetConfig()
		}
		if !o.Disabled && config != nil {
			known, err := compileOverride(where, config, &o)
			if err != nil {
				return nil, err
			}
			if !known {
				if optional || strict.Inert(config) {
					continue
				}
				return nil, fmt.Errorf("%s: %s is not supported", where, config.GetTypeUrl())
			}
		}
		out[name] = o
	}
	return out, nil
}

func compileOverride(at string, config *anypb.Any, o *Override) (known bool, err error) {
	for _, k := range kinds() {
		if config.GetTypeUrl() == typeURL(k.override) {
			*o, err = k.compileOverride(at, config)
			return true, err
		}
	}
	return false, nil
}
