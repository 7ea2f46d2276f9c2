package filters

import (
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"slices"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rbaccfgv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/lambdamesh/lambdamesh/meshconfig/proxy/request"
	"github.com/lambdamesh/lambdamesh/meshconfig/proxy/strict"
)

// rbacEngine is a compiled RBAC: without rules it allows everything, with rules
// and no matching policy ALLOW denies and DENY allows.
type rbacEngine struct {
	unset    bool
	deny     bool
	policies []rbacPolicy // by name, so that the answer is the same every time
}

type rbacPolicy struct {
	name        string
	permissions []request.Match
	principals  []request.Match
}

type rbacFilter struct{ engine *rbacEngine }

// Decode implements Filter.
func (f rbacFilter) Decode(req *request.Request, answer Answerer, override any) bool {
	engine := f.engine
	if o, ok := override.(*rbacEngine); ok {
		engine = o
	}
	name, allowed := engine.decide(req)
	if allowed {
		return true
	}
	answer.Reply(http.StatusForbidden, "rbac_access_denied_matched_policy["+name+"]", "RBAC: access denied", nil)
	return false
}

func (r *rbacEngine) decide(req *request.Request) (policy string, allowed bool) {
	if r.unset {
		return "", true
	}
	for i := range r.policies {
		p := &r.policies[i]
		if anyOf(p.permissions, req) && anyOf(p.principals, req) {
			return p.name, !r.deny
		}
	}
	return "none", r.deny
}

func anyOf(matches []request.Match, req *request.Request) bool {
	for _, m := range matches {
		if m(req) {
			return true
		}
	}
	return false
}

func rbacKind() kind {
	return kind{
		config: "envoy.extensions.filters.http.rbac.v3.RBAC",
		compile: func(at string, config *anypb.Any) (Filter, error) {
			var c rbacv3.RBAC
			if err := strict.Unmarshal(at, config, &c); err != nil {
				return nil, err
			}
			engine, err := compileRBAC(at, &c)
			return rbacFilter{engine}, err
		},

		override: "envoy.extensions.filters.http.rbac.v3.RBACPerRoute",
		compileOverride: func(at string, config *anypb.Any) (Override, error) {
			var c rbacv3.RBACPerRoute
			if err := strict.Unmarshal(at, config, &c); err != nil {
				return Override{}, err
			}
			if c.GetRbac() == nil { // "If absent, RBAC policy will be disabled for this route."
				return Override{Disabled: true}, nil
			}
			engine, err := compileRBAC(at+".rbac", c.GetRbac())
			return Override{Config: engine}, err
		},
	}
}

func compileRBAC(at string, c *rbacv3.RBAC) (*rbacEngine, error) {
	// Shadow rules only count.
	if err := strict.Allow(at, c, "rules", "rules_stat_prefix", "shadow_rules", "shadow_rules_stat_prefix", "track_per_rule_stats"); err != nil {
		return nil, err
	}
	if c.GetRules() == nil {
		return &rbacEngine{unset: true}, nil
	}
	at += ".rules"
	if err := strict.Allow(at, c.GetRules(), "action", "policies"); err != nil {
		return nil, err
	}
	r := &rbacEngine{}
	switch c.GetRules().GetAction() {
	case rbaccfgv3.RBAC_ALLOW:
	case rbaccfgv3.RBAC_DENY:
		r.deny = true
	default:
		return nil, fmt.Errorf("%s: action %s is not supported", at, c.GetRules().GetAction())
	}
	for _, name := range slices.Sorted(maps.Keys(c.GetRules().GetPolicies())) {
		policy := c.GetRules().GetPolicies()[name]
		where := fmt.Sprintf("%s.policies[%s]", at, name)
		if err := strict.Allow(where, policy, "permissions", "principals"); err != nil {
			return nil, err
		}
		p := rbacPolicy{name: name}
		var err error
		if p.permissions, err = compileEach(where+".permissions", policy.GetPermissions(), compilePermission); err != nil {
			return nil, err
		}
		if p.principals, err = compileEach(where+".principals", policy.GetPrincipals(), compilePrincipal); err != nil {
			return nil, err
		}
		r.policies = append(r.policies, p)
	}
	return r, nil
}

func compileEach[T any](at string, list []T, compile func(string, T) (request.Match, error)) ([]request.Match, error) {
	out := make([]request.Match, 0, len(list))
	for i, one := range list {
		m, err := compile(fmt.Sprintf("%s[%d]", at, i), one)
		if err != nil {
			return nil, err
		}
		out = append(out, m)
	}
	return out, nil
}

func always(v bool) request.Match { return func(*request.Request) bool { return v } }

func not(m request.Match) request.Match { return func(req *request.Request) bool { return !m(req) } }

func compilePermission(at string, p *rbaccfgv3.Permission) (request.Match, error) {
	switch r := p.GetRule().(type) {
	case *rbaccfgv3.Permission_Any:
		return always(r.Any), nil
	case *rbaccfgv3.Permission_AndRules:
		list, err := compileEach(at+".and_rules", r.AndRules.GetRules(), compilePermission)
		return func(req *request.Request) bool { return request.All(list, req) }, err
	case *rbaccfgv3.Permission_OrRules:
		list, err := compileEach(at+".or_rules", r.OrRules.GetRules(), compilePermission)
		return func(req *request.Request) bool { return anyOf(list, req) }, err
	case *rbaccfgv3.Permission_NotRule:
		m, err := compilePermission(at+".not_rule", r.NotRule)
		return not(m), err
	case *rbaccfgv3.Permission_Header:
		return request.CompileHeaderMatch(at+".header", r.Header)
	case *rbaccfgv3.Permission_UrlPath:
		m, err := request.CompileString(at+".url_path.path", r.UrlPath.GetPath())
		return func(req *request.Request) bool { return m(req.Path) }, err
	case *rbaccfgv3.Permission_DestinationPort:
		return func(req *request.Request) bool { return req.Conn.LocalPort() == r.DestinationPort }, nil
	case *rbaccfgv3.Permission_RequestedServerName:
		m, err := request.CompileString(at+".requested_server_name", r.RequestedServerName)
		return func(req *request.Request) bool { return m(req.Conn.ServerName()) }, err
	case *rbaccfgv3.Permission_Metadata:
		return request.CompileMetadata(at+".metadata", r.Metadata)
	default:
		return nil, fmt.Errorf("%s: %T is not supported", at, r)
	}
}

func compilePrincipal(at string, p *rbaccfgv3.Principal) (request.Match, error) {
	switch r := p.GetIdentifier().(type) {
	case *rbaccfgv3.Principal_Any:
		return always(r.Any), nil
	case *rbaccfgv3.Principal_AndIds:
		list, err := compileEach(at+".and_ids", r.AndIds.GetIds(), compilePrincipal)
		return func(req *request.Request) bool { return request.All(list, req) }, err
	case *rbaccfgv3.Principal_OrIds:
		list, err := compileEach(at+".or_ids", r.OrIds.GetIds(), compilePrincipal)
		return func(req *request.Request) bool { return anyOf(list, req) }, err
	case *rbaccfgv3.Principal_NotId:
		m, err := compilePrincipal(at+".not_id", r.NotId)
		return not(m), err
	case *rbaccfgv3.Principal_Authenticated_:
		if err := strict.Allow(at+".authenticated", r.Authenticated, "principal_name"); err != nil {
			return nil, err
		}
		return compileAuthenticated(at+".authenticated", r.Authenticated)
	case *rbaccfgv3.Principal_SourceIp:
		return compileCIDR(at+".source_ip", r.SourceIp, (*request.Request).DirectIP)
	case *rbaccfgv3.Principal_DirectRemoteIp:
		return compileCIDR(at+".direct_remote_ip", r.DirectRemoteIp, (*request.Request).DirectIP)
	case *rbaccfgv3.Principal_RemoteIp:
		return compileCIDR(at+".remote_ip", r.RemoteIp, (*request.Request).ClientIP)
	case *rbaccfgv3.Principal_Header:
		return request.CompileHeaderMatch(at+".header", r.Header)
	case *rbaccfgv3.Principal_UrlPath:
		m, err := request.CompileString(at+".url_path.path", r.UrlPath.GetPath())
		return func(req *request.Request) bool { return m(req.Path) }, err
	case *rbaccfgv3.Principal_Metadata:
		return request.CompileMetadata(at+".metadata", r.Metadata)
	default:
		return nil, fmt.Errorf("%s: %T is not supported", at, r)
	}
}

// compileAuthenticated matches the name in the client's verified certificate:
// its URI SANs, else its DNS SANs, else its subject. Without principal_name any
// verified certificate will do.
func compileAuthenticated(at string, a *rbaccfgv3.Principal_Authenticated) (request.Match, error) {
	if a.GetPrincipalName() == nil {
		return func(req *request.Request) bool { return req.Conn.Peer() != nil }, nil
	}
	m, err := request.CompileString(at+".principal_name", a.GetPrincipalName())
	return func(req *request.Request) bool {
		cert := req.Conn.Peer()
		if cert == nil {
			return false
		}
		if uris := req.Conn.PeerURIs(); len(uris) > 0 {
			return slices.ContainsFunc(uris, m)
		}
		if len(cert.DNSNames) > 0 {
			return slices.ContainsFunc(cert.DNSNames, m)
		}
		return m(cert.Subject.String())
	}, err
}

func compileCIDR(at string, c *corev3.CidrRange, get func(*request.Request) string) (request.Match, error) {
	ip, err := netip.ParseAddr(c.GetAddressPrefix())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", at, err)
	}
	prefix, err := ip.Prefix(int(c.GetPrefixLen().GetValue()))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", at, err)
	}
	return func(req *request.Request) bool {
		addr, err := netip.ParseAddr(get(req))
		return err == nil && prefix.Contains(addr.Unmap())
	}, nil
}
