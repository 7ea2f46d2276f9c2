package istio

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	security "istio.io/api/security/v1beta1"
	apitype "istio.io/api/type/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lambdamesh/lambdamesh/meshconfig/ir"
	"github.com/lambdamesh/lambdamesh/pkg/apis/headers"
)

const (
	keyRule      = "request.headers[" + headers.Rule + "]"
	keyAudiences = "request.auth.audiences"
)

func keyClaim(name string) string { return fmt.Sprintf("request.auth.claims[%s]", name) }

// workload writes who may reach a lambda. The policy is there without a rule
// too: then it lets nobody in.
func (w *writer) workload(workload *ir.Workload) {
	selector := &apitype.WorkloadSelector{MatchLabels: workload.Selector}
	typeMeta := func(kind string) metav1.TypeMeta {
		return metav1.TypeMeta{APIVersion: securityv1.SchemeGroupVersion.String(), Kind: kind}
	}
	policy := &securityv1.AuthorizationPolicy{TypeMeta: typeMeta("AuthorizationPolicy"), ObjectMeta: meta("lambda-", workload.Owner)}
	policy.Spec.Selector = selector
	policy.Spec.Action = security.AuthorizationPolicy_ALLOW
	policy.Spec.Rules = w.policyRules(workload)
	w.add(policy)

	peers := &securityv1.PeerAuthentication{TypeMeta: typeMeta("PeerAuthentication"), ObjectMeta: meta("lambda-", workload.Owner)}
	peers.Spec.Selector = selector
	peers.Spec.Mtls = &security.PeerAuthentication_MutualTLS{Mode: security.PeerAuthentication_MutualTLS_STRICT}
	w.add(peers)

	if rules := w.jwtRules(workload); len(rules) > 0 {
		tokens := &securityv1.RequestAuthentication{TypeMeta: typeMeta("RequestAuthentication"), ObjectMeta: meta("lambda-", workload.Owner)}
		tokens.Spec.Selector = selector
		tokens.Spec.JwtRules = rules
		w.add(tokens)
		w.destinationRules(workload)
	}
}

func (w *writer) policyRules(workload *ir.Workload) []*security.Rule {
	var rules []*security.Rule
	members := map[ir.AllowReason][]string{}
	for _, a := range workload.Allow {
		principal := strings.TrimPrefix(a.Principal, "spiffe://")
		if a.Reason != ir.AllowGateway {
			members[a.Reason] = append(members[a.Reason], principal)
			continue
		}
		var open []string // ids of rules that need no token
		for _, id := range a.Rules {
			if r := w.rules[id]; r.JWT == nil && r.ClientIPs == nil {
				open = append(open, id)
			}
		}
		if len(open) > 0 {
			rules = append(rules, &security.Rule{
				From: from(&security.Source{Principals: []string{principal}}),
				When: []*security.Condition{{Key: keyRule, Values: open}},
			})
		}
		for _, id := range a.Rules {
			r := w.rules[id]
			if r.JWT == nil && r.ClientIPs != nil {
				rules = append(rules, &security.Rule{
					From: from(source(r, &security.Source{Principals: []string{principal}})),
					When: []*security.Condition{{Key: keyRule, Values: []string{id}}},
				})
			}
			if r.JWT == nil || !w.enforceable(r) {
				continue
			}
			for _, alternative := range r.JWT.Alternatives() {
				var requestPrincipals []string
				for _, issuer := range alternative.Issuers {
					requestPrincipals = append(requestPrincipals, issuer+"/*")
				}
				rules = append(rules, &security.Rule{
					From: from(source(r, &security.Source{
						Principals:        []string{principal},
						RequestPrincipals: requestPrincipals,
					})),
					When: append([]*security.Condition{{Key: keyRule, Values: []string{id}}}, conditions(alternative)...),
				})
			}
		}
	}
	for _, reason := range slices.Sorted(maps.Keys(members)) {
		rules = append(rules, &security.Rule{From: from(&security.Source{Principals: members[reason]})})
	}
	return rules
}

// source narrows s to the addresses of a rule's clients: what the gateway
// appended to X-Forwarded-For, which is the last that stands there.
func source(r *ir.Rule, s *security.Source) *security.Source {
	if r.ClientIPs != nil {
		s.RemoteIpBlocks, s.NotRemoteIpBlocks = r.ClientIPs.Allow, r.ClientIPs.Deny
	}
	return s
}

func from(s *security.Source) []*security.Rule_From { return []*security.Rule_From{{Source: s}} }

// conditions all hold; of one condition's values one does.
func conditions(a ir.Alternative) []*security.Condition {
	all := []*security.Condition{{Key: keyClaim("sub"), Values: []string{"*"}}} // there and not empty
	if len(a.AnyAudience) > 0 {
		all = append(all, &security.Condition{Key: keyAudiences, Values: a.AnyAudience})
	}
	for _, audience := range a.AllAudiences {
		all = append(all, &security.Condition{Key: keyAudiences, Values: []string{audience}})
	}
	for _, scope := range a.Scopes {
		all = append(all, &security.Condition{Key: keyClaim(a.ScopeClaim), Values: []string{scope}})
	}
	for _, c := range a.Claims {
		all = append(all, &security.Condition{Key: keyClaim(c.Name), Values: c.Values})
	}
	return all
}

// jwtRules of all rules that lead to the workload, one per issuer: an issuer
// has one key set per workload.
func (w *writer) jwtRules(workload *ir.Workload) []*security.JWTRule {
	byIssuer := map[string]*security.JWTRule{}
	for _, a := range workload.Allow {
		for _, id := range a.Rules {
			r := w.rules[id]
			if r.JWT == nil || !w.enforceable(r) {
				continue
			}
			for _, p := range r.JWT.Providers {
				byIssuer[p.Issuer] = &security.JWTRule{
					Issuer:               p.Issuer,
					Jwks:                 w.keySets[p.KeySet],
					FromHeaders:          []*security.JWTHeader{{Name: headers.Token, Prefix: bearer}},
					SpaceDelimitedClaims: ir.ScopeClaims(),
					// For the lambda; what the client wrote there the gateway has removed.
					OutputPayloadToHeader: headers.Claims,
				}
			}
		}
	}
	var rules []*security.JWTRule
	for _, issuer := range slices.Sorted(maps.Keys(byIssuer)) {
		rules = append(rules, byIssuer[issuer])
	}
	return rules
}
