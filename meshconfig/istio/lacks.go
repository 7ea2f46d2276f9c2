package istio

import "github.com/lambdamesh/lambdamesh/meshconfig/ir"

// Lacks lists what Istio's objects cannot say. Rules that use it are closed here.
func Lacks() []ir.Feature {
	return []ir.Feature{
		ir.ClientIPsAtGateway, ir.ClientIPsBehindProxies, ir.RedirectWithAccess, ir.UseAPIKey, ir.UseRateLimit, ir.UseMaxBodyBytes,
		ir.TokenPlaces, ir.ClaimToHeaders,
	}
}

// lacks says why the rule of a gateway cannot be said; empty when it can.
func (w *writer) lacks(g *ir.Gateway, r *ir.Rule) ir.Feature {
	switch {
	case r.APIKey != nil:
		return ir.UseAPIKey
	case r.RateLimit != nil:
		return ir.UseRateLimit
	case r.MaxBodyBytes > 0:
		return ir.UseMaxBodyBytes
	case r.Redirect != nil && (r.JWT != nil || r.ClientIPs != nil):
		return ir.RedirectWithAccess
	}
	if r.JWT != nil {
		for _, p := range r.JWT.Providers {
			switch {
			case len(p.Headers)+len(p.Params) > 0:
				return ir.TokenPlaces
			case len(p.ClaimHeaders) > 0:
				return ir.ClaimToHeaders
			}
		}
	}
	switch {
	case r.ClientIPs == nil:
		return ""
	case !w.enforceable(r):
		return ir.ClientIPsAtGateway
	case g.TrustedProxies > 0 || g.ProxyProtocol:
		return ir.ClientIPsBehindProxies
	}
	return ""
}
