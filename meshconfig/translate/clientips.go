package translate

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"

	"github.com/lambdamesh/lambdamesh/meshconfig/ir"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// clientIPs of the rule at hand. What cannot be read closes it.
func (t *ruleTranslator) clientIPs(spec *v1alpha1.ClientIPs) *ir.ClientIPs {
	if spec == nil {
		return nil
	}
	out := &ir.ClientIPs{Allow: t.ranges(".clientIPs.allow", spec.Allow), Deny: t.ranges(".clientIPs.deny", spec.Deny)}
	if len(spec.Allow)+len(spec.Deny) == 0 {
		t.refuse(".clientIPs", v1alpha1.ReasonInvalid, "names no range and restricts nothing; write allow or deny, or remove the field")
	}
	if g := t.gateways[gatewayKey(t.object)]; g != nil && (g.ir.TrustedProxies > 0 || g.ir.ProxyProtocol) && t.settings.lacks(ir.ClientIPsBehindProxies) {
		t.refuse(".clientIPs", v1alpha1.ReasonNotSupported, "Gateway %s says by annotation that proxies stand before it, which Istio's gateways are told in gatewayTopology of their MeshConfig or pods, "+
			"and sidecars see the address that the gateway was called from; remove the annotation, or clientIPs", g.ir.Key())
	}
	return out
}

func (t *ruleTranslator) ranges(field string, all []v1alpha1.CIDR) []string {
	if all != nil && len(all) == 0 {
		t.refuse(field, v1alpha1.ReasonInvalid, "the list is empty; write ranges such as 192.0.2.0/24, or remove the field")
	}
	var out []string
	for _, text := range all {
		prefix, err := netip.ParsePrefix(string(text))
		if err != nil || prefix.Addr().Is4In6() {
			t.refuse(field, v1alpha1.ReasonInvalid, "%q is no range of addresses; write 192.0.2.0/24 or 2001:db8::/32", text)
			continue
		}
		out = append(out, prefix.Masked().String())
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// maxTrustedProxies before a gateway; more than that is a mistake.
const maxTrustedProxies = 16

// clientAddresses reads how the gateway learns the addresses of its clients. What
// cannot be read closes it: its rules would judge the wrong addresses.
func (r *gatewayReader) clientAddresses(g *networkingv1.Gateway, out *ir.Gateway) *Problem {
	refuse := func(annotation, format string, args ...any) *Problem {
		r.field = "metadata"
		return r.refuse(fmt.Sprintf(".annotations[%s]", annotation), v1alpha1.ReasonInvalid, format, args...)
	}
	if text, given := g.Annotations[v1alpha1.AnnotationTrustedProxies]; given {
		n, err := strconv.ParseUint(text, 10, 32)
		if err != nil || n > maxTrustedProxies {
			return refuse(v1alpha1.AnnotationTrustedProxies, "%q is no number of proxies from 0 to %d", text, maxTrustedProxies)
		}
		out.TrustedProxies = uint32(n)
	}
	switch text, given := g.Annotations[v1alpha1.AnnotationProxyProtocol]; {
	case !given:
	case text == "v2":
		out.ProxyProtocol = true
	default:
		return refuse(v1alpha1.AnnotationProxyProtocol, "%q is not supported; write v2 or remove the annotation", text)
	}
	return nil
}
