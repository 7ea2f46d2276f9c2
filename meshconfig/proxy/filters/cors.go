package filters

import (
	"fmt"
	"net/http"

	corsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/lambdamesh/lambdamesh/meshconfig/proxy/request"
	"github.com/lambdamesh/lambdamesh/meshconfig/proxy/strict"
)

// corsPolicy is a compiled CorsPolicy of a route.
type corsPolicy struct {
	origins       []request.StringMatch
	methods       string
	headers       string
	expose        string
	maxAge        string
	credentials   bool
	forwardOthers bool
}

// corsFilter has no configuration of its own: routes say what is allowed.
type corsFilter struct{}

func corsKind() kind {
	return kind{
		config:  "envoy.extensions.filters.http.cors.v3.Cors",
		compile: func(string, *anypb.Any) (Filter, error) { return corsFilter{}, nil },

		override: "envoy.extensions.filters.http.cors.v3.CorsPolicy",
		compileOverride: func(at string, config *anypb.Any) (Override, error) {
			var c corsv3.CorsPolicy
			if err := strict.Unmarshal(at, config, &c); err != nil {
				return Override{}, err
			}
			policy, err := compileCORS(at, &c)
			return Override{Config: policy}, err
		},
	}
}

func compileCORS(at string, c *corsv3.CorsPolicy) (*corsPolicy, error) {
	if err := strict.Allow(at, c, "allow_origin_string_match", "allow_methods", "allow_headers", "expose_headers", "max_age",
		"allow_credentials", "filter_enabled", "forward_not_matching_preflights"); err != nil {
		return nil, err
	}
	p := &corsPolicy{
		methods: c.GetAllowMethods(), headers: c.GetAllowHeaders(), expose: c.GetExposeHeaders(), maxAge: c.GetMaxAge(),
		credentials: c.GetAllowCredentials().GetValue(), forwardOthers: true,
	}
	if f := c.GetFilterEnabled(); f != nil {
		if v := f.GetDefaultValue(); v.GetNumerator() != 100 || v.GetDenominator() != 0 {
			return nil, fmt.Errorf("%s.filter_enabled: only 100 percent is supported", at)
		}
	}
	if f := c.GetForwardNotMatchingPreflights(); f != nil {
		p.forwardOthers = f.GetValue()
	}
	for _, m := range c.GetAllowOriginStringMatch() {
		match, err := request.CompileString(at+".allow_origin_string_match", m)
		if err != nil {
			return nil, err
		}
		p.origins = append(p.origins, match)
	}
	return p, nil
}

func (p *corsPolicy) allows(origin string) bool {
	for _, match := range p.origins {
		if match("*") || match(origin) {
			return true
		}
	}
	return false
}

// Decode implements Filter.
func (corsFilter) Decode(req *request.Request, answer Answerer, override any) bool {
	p, _ := override.(*corsPolicy)
	origin := req.HTTP.Header.Get("Origin")
	if p == nil || origin == "" {
		return true
	}
	allowed := p.allows(origin)
	if req.HTTP.Method == http.MethodOptions && req.HTTP.Header.Get("Access-Control-Request-Method") != "" {
		if !allowed && p.forwardOthers {
			return true
		}
		h := answer.Header()
		if allowed {
			p.origin(h, origin)
			set := func(name, value string) {
				if value != "" {
					h.Set(name, value)
				}
			}
			set("Access-Control-Allow-Methods", p.methods)
			set("Access-Control-Allow-Headers", p.headers)
			set("Access-Control-Max-Age", p.maxAge)
		}
		// A success has no body, so the format of local replies is not for it.
		answer.Empty(http.StatusOK)
		return false
	}
	if allowed {
		answer.OnResponse(func(h http.Header) {
			p.origin(h, origin)
			if p.expose != "" {
				h.Set("Access-Control-Expose-Headers", p.expose)
			}
		})
	}
	return true
}

func (p *corsPolicy) origin(h http.Header, origin string) {
	h.Set("Access-Control-Allow-Origin", origin)
	if p.credentials {
		h.Set("Access-Control-Allow-Credentials", "true")
	}
}
