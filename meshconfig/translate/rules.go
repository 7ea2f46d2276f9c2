package translate

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"reflect"
	"regexp/syntax"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lambdamesh/lambdamesh/meshconfig/ir"
	"github.com/lambdamesh/lambdamesh/pkg/apis/headers"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// defaultTimeout of a request; the kind's default too.
const defaultTimeout = 180 * time.Second

// statusClosed is what a rule answers that cannot be obeyed.
const statusClosed = 503

func (t *translator) addAPIRules() {
	budgets := newTreasury(t.settings, t.apiRules)
	served := make(map[*v1alpha1.APIRule][]string, len(t.apiRules))
	for _, r := range t.apiRules {
		key := gatewayKey(r)
		g := t.gateways[key]
		if g == nil {
			t.report(apiRuleProblem(r, v1alpha1.ConditionAccepted, "spec.gateway").because(ReasonUnknownGateway,
				"there is no networking.istio.io/v1 Gateway %s; create it or name another one", key))
		}
		if t.meshProblem != "" {
			t.report(apiRuleProblem(r, v1alpha1.ConditionAccepted, "spec.rules").because(ReasonPathsNotNormalized, "%s", t.meshProblem))
		}
		claims := r
		if budgets.unclaimed[name(r)] {
			claims = claimsOfRefused(budgets, r)
		}
		served[r] = t.hosts(claims, g)
	}
	servers := make(map[*v1alpha1.APIRule]serving, len(served))
	for r, hosts := range served {
		if g := t.gateways[gatewayKey(r)]; len(hosts) > 0 {
			servers[r] = serving{all: len(g.ir.Servers), own: g.ir.RouteTables(r.Namespace, hosts)}
		}
	}
	budgets.chargeGateways(servers)
	for _, r := range t.apiRules {
		if why := budgets.refused[name(r)]; why != "" {
			t.report(apiRuleProblem(r, v1alpha1.ConditionAccepted, "spec").because(ReasonTooLarge, "%s", why))
			if kept := min(len(served[r]), budgets.kept[name(r)].hosts); kept > 0 {
				t.closeHosts(r, served[r][:kept])
			}
			continue
		}
		g, hosts := t.gateways[gatewayKey(r)], served[r]
		if g != nil {
			t.reportAiling(r, g, hosts)
		}
		rt := ruleTranslator{translator: t, object: r, served: len(hosts) > 0, ids: map[string]int{}}
		vh := ir.VirtualHost{Owner: owner("APIRule", r), Hosts: slices.Sorted(slices.Values(hosts)), CORS: rt.cors()}
		for i := range r.Spec.Rules {
			vh.Rules = append(vh.Rules, rt.rule(i))
			rt.reportShadowed(vh.Rules)
		}
		if rt.served {
			g.ir.VirtualHosts = append(g.ir.VirtualHosts, &vh)
		}
	}
}

// claimsOfRefused is the APIRule with as many hosts as it has a place for: who
// asks for too many keeps those it had, and no others from anybody.
func claimsOfRefused(budgets *treasury, r *v1alpha1.APIRule) *v1alpha1.APIRule {
	kept, _ := budgets.reservedAtGateway(r)
	less := r.DeepCopy()
	less.Spec.Hosts = less.Spec.Hosts[:kept.hosts]
	return less
}

// closeHosts answers 503 at hosts of an APIRule that was served and is refused
// now: a 404 would tell its clients that there is nothing. They are the first in
// spec.hosts, which an edit that adds some leaves where they are.
func (t *translator) closeHosts(r *v1alpha1.APIRule, hosts []string) {
	g := t.gateways[gatewayKey(r)]
	g.ir.VirtualHosts = append(g.ir.VirtualHosts, &ir.VirtualHost{Owner: owner("APIRule", r), Hosts: slices.Sorted(slices.Values(hosts)), Rules: []ir.Rule{
		{ID: r.Namespace + "/" + r.Name + "/too-large", Path: ir.AnyPath(), Closed: &ir.Closed{Status: statusClosed, Reason: ReasonTooLarge}},
	}})
}

func gatewayKey(r *v1alpha1.APIRule) string {
	if r.Spec.Gateway == "" {
		return v1alpha1.DefaultGateway
	}
	return r.Spec.Gateway
}

func owner(kind string, o metav1.Object) ir.Owner {
	return ir.Owner{Kind: kind, Namespace: o.GetNamespace(), Name: o.GetName(), UID: string(o.GetUID())}
}

// ruleTranslator translates the rules of one APIRule.
type ruleTranslator struct {
	*translator

	object *v1alpha1.APIRule
	// served: requests can reach the rules. Rules that are not served open
	// nothing to anybody.
	served bool
	ids    map[string]int

	// Of the rule at hand:
	field  string
	closed *ir.Closed
}

// close answers 503 under the rule at hand and reports why.
func (t *ruleTranslator) close(condition, field, reason, format string, args ...any) {
	p := apiRuleProblem(t.object, condition, t.field+field).because(reason, format, args...)
	t.report(p)
	if t.closed == nil {
		t.closed = &ir.Closed{Status: statusClosed, Reason: reason}
	}
}

func (t *ruleTranslator) refuse(field, reason, format string, args ...any) {
	t.close(v1alpha1.ConditionAccepted, field, reason, format, args...)
}

func (t *ruleTranslator) unresolved(field, reason, format string, args ...any) {
	t.close(v1alpha1.ConditionResolvedRefs, field, reason, format, args...)
}

func (t *ruleTranslator) rule(i int) ir.Rule {
	spec := &t.object.Spec.Rules[i]
	t.field, t.closed = fmt.Sprintf("spec.rules[%d]", i), nil

	if t.meshProblem != "" {
		t.closed = &ir.Closed{Status: statusClosed, Reason: ReasonPathsNotNormalized}
	}
	out := ir.Rule{ID: t.id(spec), Index: i}
	t.match(spec, &out)
	jwt := t.auth(spec)
	out.ClientIPs = t.clientIPs(spec.ClientIPs)
	backends := t.backends(spec)
	out.Rewrite = t.rewrite(spec.Rewrite)
	out.RequestHeaders = t.headerEdits(".request", spec.Request)
	out.ResponseHeaders = t.headerEdits(".response", spec.Response)
	if t.object.Spec.CORS != nil {
		out.ResponseHeaders = t.onlyOurCORS(out.ResponseHeaders)
	}
	out.Timeout = timeout(spec.Timeout, t.object.Spec.Timeout)
	out.Retries = retries(spec.Retries)
	out.Redirect = t.redirect(spec)
	out.Mirror = t.mirror(spec.Mirror)
	out.RateLimit = t.rateLimit(spec)
	out.MaxBodyBytes = t.maxBodyBytes(spec.MaxBodyBytes)
	out.APIKey = t.apiKey(spec.APIKey)
	reached := slices.Clone(backends)
	if out.Mirror != nil {
		reached = append(reached, ir.Backend{Destination: out.Mirror.Destination})
	}
	if t.closed == nil && jwt != nil {
		t.checkIssuers(jwt, reached)
		if t.settings.TokensAtSidecars {
			t.checkSidecars(".jwt", "tokens", reached)
		}
	}
	if t.closed == nil && out.ClientIPs != nil && t.settings.lacks(ir.ClientIPsAtGateway) {
		t.checkSidecars(".clientIPs", "addresses", reached)
	}
	if t.closed != nil {
		return ir.Rule{ID: out.ID, Index: i, Path: out.Path, Methods: out.Methods, Headers: out.Headers, Closed: t.closed}
	}
	if t.served {
		t.allowGateway(out.ID, reached)
	}
	out.JWT, out.Backends = t.keep(jwt), backends
	return out
}

// id hashes what decides about a request and its access, not what happens
// afterwards: a changed timeout must not make a sidecar wait for a new policy.
func (t *ruleTranslator) id(spec *v1alpha1.Rule) string {
	decides := []any{spec.Path, spec.Methods, spec.Headers, spec.NoAuth, spec.JWT, spec.ExtAuth}
	for _, more := range []any{spec.ClientIPs, spec.APIKey} { // which most rules do not have
		if !reflect.ValueOf(more).IsNil() {
			decides = append(decides, more)
		}
	}
	text, err := json.Marshal(decides)
	if err != nil { // these are plain values
		text = fmt.Appendf(nil, "%+v", spec)
	}
	sum := sha256.Sum256(text)
	id := t.object.Namespace + "/" + t.object.Name + "/" + hex.EncodeToString(sum[:5])
	t.ids[id]++
	if n := t.ids[id]; n > 1 {
		id += fmt.Sprintf("-%d", n)
	}
	return id
}

// match translates what requests the rule is for. When a part cannot be
// translated it is left out, so that the closed rule takes every request it may
// have meant: falling through to a later rule could let somebody in.
func (t *ruleTranslator) match(spec *v1alpha1.Rule, out *ir.Rule) {
	path, err := ir.ParsePath(spec.Path)
	if err != nil {
		path = ir.AnyPath()
		t.refuse(".path", v1alpha1.ReasonInvalid, "%v", err)
	}
	out.Path = path
	for _, m := range spec.Methods {
		if m == "" || strings.ContainsFunc(string(m), func(c rune) bool { return c < 'A' || c > 'Z' }) {
			out.Methods = nil
			t.refuse(".methods", v1alpha1.ReasonInvalid, "%q is no method; write GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS or TRACE", m)
			break
		}
		out.Methods = append(out.Methods, string(m))
	}
	slices.Sort(out.Methods)
	out.Methods = slices.Compact(out.Methods)
	conditions := map[string]int{}
	for i, h := range spec.Headers {
		field := fmt.Sprintf(".headers[%d]", i)
		match, problem := headerMatch(h)
		if problem == "" && headers.Identity(h.Name) {
			problem = fmt.Sprintf("%q belongs to the mesh: a client's copy is removed before rules are tried, so that no request would match; to ask who calls use jwt", h.Name)
		}
		if problem != "" {
			t.refuse(field, v1alpha1.ReasonInvalid, "%s", problem)
			continue
		}
		name := strings.ToLower(h.Name)
		if conditions[name]++; conditions[name] > maxConditions(name) {
			t.refuse(field, v1alpha1.ReasonInvalid, "%q has too many conditions; say them in one regex", h.Name)
			continue
		}
		out.Headers = append(out.Headers, ir.HeaderMatch{Name: name, StringMatch: match})
	}
}

// maxConditions on one header: Istio's objects tell them apart by the case of
// the name's letters.
func maxConditions(name string) int {
	letters := 0
	for _, c := range name {
		if c >= 'a' && c <= 'z' {
			letters++
		}
	}
	return 1 << min(letters, 8)
}

func headerMatch(h v1alpha1.HeaderMatch) (match ir.StringMatch, problem string) {
	if !headerName(h.Name) {
		return match, fmt.Sprintf("%q is no header name of letters, digits and '-'", h.Name)
	}
	if h.Present != nil && h.Exact == nil && h.Prefix == nil && h.Regex == nil {
		if *h.Present {
			return ir.StringMatch{Kind: ir.MatchPresent}, ""
		}
		return ir.StringMatch{Kind: ir.MatchAbsent}, ""
	}
	if h.Present != nil {
		return match, "write exactly one of exact, prefix, regex, present"
	}
	return stringMatch(h.Exact, h.Prefix, h.Regex)
}

func stringMatch(exact, prefix, regex *string) (match ir.StringMatch, problem string) {
	n := 0
	for _, m := range []struct {
		kind  ir.MatchKind
		value *string
	}{{ir.MatchExact, exact}, {ir.MatchPrefix, prefix}, {ir.MatchRegex, regex}} {
		if m.value != nil {
			match = ir.StringMatch{Kind: m.kind, Value: *m.value}
			n++
		}
	}
	switch {
	case n != 1:
		return match, "write exactly one of exact, prefix, regex"
	case match.Kind == ir.MatchExact && match.Value == "":
		return match, "an empty exact value cannot be matched; use present: false for a header that must not be there"
	case match.Kind != ir.MatchRegex:
		return match, ""
	}
	// Parsed only, since this is done again with every change in the mesh.
	if _, err := syntax.Parse(match.Value, syntax.Perl); err != nil {
		return match, fmt.Sprintf("the regular expression (RE2) cannot be read: %v", err)
	}
	return match, ""
}

func headerName(name string) bool {
	return name != "" && !strings.ContainsFunc(name, func(c rune) bool {
		return !(c == '-' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9')
	})
}

func (t *ruleTranslator) headerEdits(field string, edits *v1alpha1.HeaderEdits) ir.HeaderEdits {
	var out ir.HeaderEdits
	if edits == nil {
		return out
	}
	usable := func(field, name string) bool {
		switch {
		case !headerName(name):
			t.refuse(field, v1alpha1.ReasonInvalid, "%q is no header name of letters, digits and '-'", name)
		case reservedHeader(strings.ToLower(name)):
			t.refuse(field, v1alpha1.ReasonInvalid, "%q belongs to the mesh or to HTTP itself and cannot be edited", name)
		default:
			return true
		}
		return false
	}
	for _, name := range sortedKeys(edits.SetHeaders) {
		value := string(edits.SetHeaders[name])
		if strings.ContainsAny(value, "\x00\r\n") {
			t.refuse(field+".setHeaders", v1alpha1.ReasonInvalid, "the value of %q has a line break", name)
			continue
		}
		if usable(field+".setHeaders", name) {
			out.Set = append(out.Set, ir.Header{Name: strings.ToLower(name), Value: value})
		}
	}
	for _, name := range edits.RemoveHeaders {
		if usable(field+".removeHeaders", name) {
			out.Remove = append(out.Remove, strings.ToLower(name))
		}
	}
	slices.SortFunc(out.Set, func(a, b ir.Header) int { return strings.Compare(a.Name, b.Name) })
	slices.Sort(out.Remove)
	out.Remove = slices.Compact(out.Remove)
	return out
}

// onlyOurCORS removes what a backend tells browsers: cors alone decides which
// origins may read its answers.
func (t *ruleTranslator) onlyOurCORS(edits ir.HeaderEdits) ir.HeaderEdits {
	for _, h := range edits.Set {
		if strings.HasPrefix(h.Name, "access-control-") {
			t.refuse(".response.setHeaders", v1alpha1.ReasonInvalid, "%q is decided by spec.cors alone; remove one of them", h.Name)
		}
	}
	edits.Remove = append(edits.Remove, "access-control-allow-credentials", "access-control-allow-headers", "access-control-allow-methods",
		"access-control-allow-origin", "access-control-allow-private-network", "access-control-expose-headers", "access-control-max-age")
	slices.Sort(edits.Remove)
	edits.Remove = slices.Compact(edits.Remove)
	return edits
}

// reservedHeader says whether editing the header could change who a request
// seems to be from, or how a message is framed.
func reservedHeader(name string) bool {
	return headers.OfConnection(name) || headers.OfProxy(name) || headers.Identity(name)
}

func (t *ruleTranslator) rewrite(r *v1alpha1.Rewrite) *ir.Rewrite {
	if r == nil {
		return nil
	}
	if r.Path != "" && (!strings.HasPrefix(r.Path, "/") || strings.ContainsAny(r.Path, "?# \t\r\n\x00")) {
		t.refuse(".rewrite.path", v1alpha1.ReasonInvalid, "%q is no path: it begins with / and has no ?, # or space", r.Path)
	}
	if r.Host != "" && !validHost(r.Host) {
		t.refuse(".rewrite.host", v1alpha1.ReasonInvalid, "%q is no host name", r.Host)
	}
	return &ir.Rewrite{Path: r.Path, Host: r.Host}
}

// timeout is the first that is set.
func timeout(candidates ...*metav1.Duration) ir.Duration {
	for _, d := range candidates {
		if d != nil && d.Duration > 0 {
			return ir.Duration(d.Duration)
		}
	}
	return ir.Duration(defaultTimeout)
}

func retries(r *v1alpha1.Retries) *ir.Retries {
	if r == nil {
		return nil
	}
	out := &ir.Retries{Attempts: uint32(max(r.Attempts, 0))}
	for _, condition := range r.RetryOn {
		out.RetryOn = append(out.RetryOn, string(condition))
	}
	slices.Sort(out.RetryOn)
	if r.PerTryTimeout != nil {
		out.PerTryTimeout = ir.Duration(r.PerTryTimeout.Duration)
	}
	if len(out.RetryOn) == 0 {
		out.RetryOn = ir.DefaultRetries().RetryOn
	}
	return out
}

// cors translates the policy. One that cannot be allows no origin: browsers then
// refuse what it would have allowed.
func (t *ruleTranslator) cors() *ir.CORS {
	spec := t.object.Spec.CORS
	if spec == nil {
		return nil
	}
	refuse := func(field, format string, args ...any) *ir.CORS {
		t.report(apiRuleProblem(t.object, v1alpha1.ConditionAccepted, "spec.cors"+field).because(v1alpha1.ReasonInvalid, format, args...))
		return &ir.CORS{}
	}
	for _, name := range slices.Concat(spec.AllowHeaders, spec.ExposeHeaders) {
		if headers.Identity(name) {
			return refuse("", "%q belongs to the mesh and no page sends or reads it; remove it", name)
		}
	}
	out := &ir.CORS{
		AllowHeaders:     lowerSorted(spec.AllowHeaders),
		ExposeHeaders:    lowerSorted(spec.ExposeHeaders),
		AllowCredentials: spec.AllowCredentials != nil && *spec.AllowCredentials,
	}
	for i, o := range spec.AllowOrigins {
		match, problem := stringMatch(o.Exact, o.Prefix, o.Regex)
		if problem != "" {
			return refuse(fmt.Sprintf(".allowOrigins[%d]", i), "%s", problem)
		}
		if match.Value == "*" && match.Kind == ir.MatchExact && out.AllowCredentials {
			return refuse(fmt.Sprintf(".allowOrigins[%d]", i), "allowCredentials needs named origins, not *")
		}
		out.AllowOrigins = append(out.AllowOrigins, match)
	}
	for _, m := range spec.AllowMethods {
		out.AllowMethods = append(out.AllowMethods, string(m))
	}
	slices.Sort(out.AllowMethods)
	if spec.MaxAge != nil {
		out.MaxAge = ir.Duration(spec.MaxAge.Duration.Truncate(time.Second))
	}
	return out
}

func lowerSorted(names []string) []string {
	var out []string
	for _, n := range names {
		out = append(out, strings.ToLower(n))
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// reportShadowed warns when an earlier rule takes all requests of the last one.
func (t *ruleTranslator) reportShadowed(rules []ir.Rule) {
	last := &rules[len(rules)-1]
	for i := range rules[:len(rules)-1] {
		if rules[i].Shadows(last) {
			p := apiRuleProblem(t.object, v1alpha1.ConditionAccepted, t.field).because(ReasonShadowed,
				"never decides: spec.rules[%d] is tried before it and takes all its requests; put the narrower rule first", i)
			p.Warning = true
			t.report(p)
			return
		}
	}
}
