package istio

import "github.com/lambdamesh/lambdamesh/meshconfig/ir"

// Lacks lists what Istio's objects cannot say. Rules that use it are closed here.
func Lacks() []ir.Feature {
	return []ir.Feature{ir.ClientIPsAtGateway, ir.ClientIPsBehindProxies}
}

// lacks says why the rule of a gateway cannot be said; empty when it can.
func (w *writer) lacks(g *ir.Gateway, r *ir.Rule) ir.Feature {
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
