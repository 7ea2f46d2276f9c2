package proxy

import (
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"slices"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rbaccfgv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
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
	permissions []requestMatch
	principals  []requestMatch
}

type rbacFilter struct{ engine *rbacEngine }

func (f rbacFilter) decode(e *exchange, override any) bool {
	engine := f.engine
	if o, ok := override.(*rbacEngine); ok {
		engine = o
	}
	name, allowed := engine.decide(e)
	if allowed {
		return true
	}
	e.reply(http.StatusForbidden, "rbac_access_denied_matched_policy["+name+"]", "RBAC: access denied", nil)
	return false
}

func (r *rbacEngine) decide(e *exchange) (policy string, allowed bool) {
	if r.unset {
		return "", true
	}
	for i := range r.policies {
		p := &r.policies[i]
		if anyOf(p.permissions, e) && anyOf(p.principals, e) {
			return p.name, !r.deny
		}
	}
	return "none", r.deny
}

func anyOf(matches []requestMatch, e *exchange) bool {
	for _, m := range matches {
		if m(e) {
			return true
		}
	}
	return false
}

func compileRBAC(at string, c *rbacv3.RBAC) (*rbacEngine, error) {
	// Shadow rules only count.
	if err := allow(at, c, "rules", "rules_stat_prefix", "shadow_rules", "shadow_rules_stat_prefix", "track_per_rule_stats"); err != nil {
		return nil, err
	}
	if c.GetRules() == nil {
		return &rbacEngine{unset: true}, nil
	}
	at += ".rules"
	if err := allow(at, c.GetRules(), "action", "policies"); err != nil {
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
		if err := allow(where, policy, "permissions", "principals"); err != nil {
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

func compileEach[T any](at string, list []T, compile func(string, T) (requestMatch, error)) ([]requestMatch, error) {
	out := make([]requestMatch, 0, len(list))
	for i, one := range list {
		m, err := compile(fmt.Sprintf("%s[%d]", at, i), one)
		if err != nil {
			return nil, err
		}
		out = append(out, m)
	}
	return out, nil
}

func always(v bool) requestMatch { return func(*exchange) bool { return v } }

func not(m requestMatch) requestMatch { return func(e *exchange) bool { return !m(e) } }

func compilePermission(at string, p *rbaccfgv3.Permission) (requestMatch, error) {
	switch r := p.GetRule().(type) {
	case *rbaccfgv3.Permission_Any:
		return always(r.Any), nil
	case *rbaccfgv3.Permission_AndRules:
		list, err := compileEach(at+".and_rules", r.AndRules.GetRules(), compilePermission)
		return func(e *exchange) bool { return all(list, e) }, err
	case *rbaccfgv3.Permission_OrRules:
		list, err := compileEach(at+".or_rules", r.OrRules.GetRules(), compilePermission)
		return func(e *exchange) bool { return anyOf(list, e) }, err
	case *rbaccfgv3.Permission_NotRule:
		m, err := compilePermission(at+".not_rule", r.NotRule)
		return not(m), err
	case *rbaccfgv3.Permission_Header:
		return compileHeaderMatch(at+".header", r.Header)
	case *rbaccfgv3.Permission_UrlPath:
		m, err := compileString(at+".url_path.path", r.UrlPath.GetPath())
		return func(e *exchange) bool { return m(e.path) }, err
	case *rbaccfgv3.Permission_DestinationPort:
		return func(e *exchange) bool { return e.conn.localPort() == r.DestinationPort }, nil
	case *rbaccfgv3.Permission_RequestedServerName:
		m, err := compileString(at+".requested_server_name", r.RequestedServerName)
		return func(e *exchange) bool { return m(e.conn.serverName()) }, err
	case *rbaccfgv3.Permission_Metadata:
		return compileMetadata(at+".metadata", r.Metadata)
	default:
		return nil, fmt.Errorf("%s: %T is not supported", at, r)
	}
}

func compilePrincipal(at string, p *rbaccfgv3.Principal) (requestMatch, error) {
	switch r := p.GetIdentifier().(type) {
	case *rbaccfgv3.Principal_Any:
		return always(r.Any), nil
	case *rbaccfgv3.Principal_AndIds:
		list, err := compileEach(at+".and_ids", r.AndIds.GetIds(), compilePrincipal)
		return func(e *exchange) bool { return all(list, e) }, err
	case *rbaccfgv3.Principal_OrIds:
		list, err := compileEach(at+".or_ids", r.OrIds.GetIds(), compilePrincipal)
		return func(e *exchange) bool { return anyOf(list, e) }, err
	case *rbaccfgv3.Principal_NotId:
		m, err := compilePrincipal(at+".not_id", r.NotId)
		return not(m), err
	case *rbaccfgv3.Principal_Authenticated_:
		if err := allow(at+".authenticated", r.Authenticated, "principal_name"); err != nil {
			return nil, err
		}
		return compileAuthenticated(at+".authenticated", r.Authenticated)
	case *rbaccfgv3.Principal_SourceIp:
		return compileCIDR(at+".source_ip", r.SourceIp, (*exchange).directIP)
	case *rbaccfgv3.Principal_DirectRemoteIp:
		return compileCIDR(at+".direct_remote_ip", r.DirectRemoteIp, (*exchange).directIP)
	case *rbaccfgv3.Principal_RemoteIp:
		return compileCIDR(at+".remote_ip", r.RemoteIp, (*exchange).remoteIP)
	case *rbaccfgv3.Principal_Header:
		return compileHeaderMatch(at+".header", r.Header)
	case *rbaccfgv3.Principal_UrlPath:
		m, err := compileString(at+".url_path.path", r.UrlPath.GetPath())
		return func(e *exchange) bool { return m(e.path) }, err
	case *rbaccfgv3.Principal_Metadata:
		return compileMetadata(at+".metadata", r.Metadata)
	default:
		return nil, fmt.Errorf("%s: %T is not supported", at, r)
	}
}

// compileAuthenticated matches the name in the client's verified certificate:
// its URI SANs, else its DNS SANs, else its subject. Without principal_name any
// verified certificate will do.
func compileAuthenticated(at string, a *rbaccfgv3.Principal_Authenticated) (requestMatch, error) {
	if a.GetPrincipalName() == nil {
		return func(e *exchange) bool { return e.conn.peer() != nil }, nil
	}
	m, err := compileString(at+".principal_name", a.GetPrincipalName())
	return func(e *exchange) bool {
		cert := e.conn.peer()
		if cert == nil {
			return false
		}
		if uris := e.conn.peerURIs(); len(uris) > 0 {
			return slices.ContainsFunc(uris, m)
		}
		if len(cert.DNSNames) > 0 {
			return slices.ContainsFunc(cert.DNSNames, m)
		}
		return m(cert.Subject.String())
	}, err
}

func compileCIDR(at string, c *corev3.CidrRange, get func(*exchange) string) (requestMatch, error) {
	ip, err := netip.ParseAddr(c.GetAddressPrefix())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", at, err)
	}
	prefix, err := ip.Prefix(int(c.GetPrefixLen().GetValue()))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", at, err)
	}
	return func(e *exchange) bool {
		addr, err := netip.ParseAddr(get(e))
		return err == nil && prefix.Contains(addr.Unmap())
	}, nil
}
