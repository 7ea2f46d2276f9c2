package translate

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode"

	"github.com/lambdamesh/lambdamesh/meshconfig/ir"
	"github.com/lambdamesh/lambdamesh/meshconfig/jwk"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// jwksKey of a Secret that jwksSecret names.
const jwksKey = "jwks.json"

// keySet is where keys come from and what is there.
type keySet struct {
	json string
	// problem for people; empty when the keys are good. Reason goes with it.
	problem, reason string
	// used by a rule that is served; others stay out of the mesh.
	used bool
}

// issuerUse is an issuer whose tokens a workload takes, issuerClaim who said
// first where its keys are.
type issuerUse struct{ workload, issuer string }

type issuerClaim struct{ keySet, owner string }

// auth translates how callers prove who they are. It returns nil for a rule
// that is open to all, and for one that it closes.
func (t *ruleTranslator) auth(spec *v1alpha1.Rule) *ir.JWT {
	noAuth := spec.NoAuth != nil && *spec.NoAuth
	n := 0
	for _, given := range []bool{noAuth, spec.JWT != nil, spec.ExtAuth != nil, spec.APIKey != nil} {
		if given {
			n++
		}
	}
	switch {
	case n != 1:
		t.refuse("", v1alpha1.ReasonInvalid, "write exactly one of noAuth: true, jwt, extAuth, apiKey")
	case spec.ExtAuth != nil:
		t.refuse(".extAuth", v1alpha1.ReasonNotSupported, "external authorizers are not supported yet; use jwt or noAuth")
	case spec.JWT != nil:
		return t.jwt(spec.JWT)
	}
	return nil
}

func (t *ruleTranslator) jwt(spec *v1alpha1.JWTAuth) *ir.JWT {
	out, claimHeaders := &ir.JWT{}, t.claimHeaders(spec.ClaimToHeaders)
	if len(spec.Authentications) == 0 {
		t.refuse(".jwt.authentications", v1alpha1.ReasonInvalid, "name an issuer whose tokens are taken")
	}
	for i, a := range spec.Authentications {
		field := fmt.Sprintf(".jwt.authentications[%d]", i)
		if !isIssuer(a.Issuer) {
			t.refuse(field+".issuer", v1alpha1.ReasonInvalid, "%q is no issuer; write the token's iss, without wildcards, blanks, | and control characters", a.Issuer)
			continue
		}
		t.checkAsked(field+".audiences", a.Audiences)
		p := ir.JWTProvider{Issuer: a.Issuer, KeySet: t.keySetOf(field, a), Audiences: sortedSet(a.Audiences), ClaimHeaders: claimHeaders}
		t.tokenPlaces(field, a, &p)
		for _, other := range out.Providers {
			if other.Issuer == p.Issuer && other.KeySet != p.KeySet {
				t.refuse(field, ReasonIssuerConflict, "the same rule names issuer %q with other keys", p.Issuer)
			}
		}
		out.Providers = append(out.Providers, p)
	}
	if spec.Authorizations != nil && len(spec.Authorizations) == 0 {
		t.refuse(".jwt.authorizations", v1alpha1.ReasonInvalid, "the list is empty and asks nothing; write what a token must claim, or remove the field to let every valid token in")
	}
	for i, a := range spec.Authorizations {
		field := fmt.Sprintf(".jwt.authorizations[%d]", i)
		if len(a.RequiredScopes)+len(a.Audiences)+len(a.Claims) == 0 {
			t.refuse(field, v1alpha1.ReasonInvalid, "asks nothing and would let every valid token in; write requiredScopes, audiences or claims, or remove authorizations")
		}
		t.checkAsked(field+".requiredScopes", a.RequiredScopes)
		t.checkAsked(field+".audiences", a.Audiences)
		authorization := ir.JWTAuthorization{Scopes: sortedSet(a.RequiredScopes), Audiences: sortedSet(a.Audiences)}
		for j, c := range a.Claims {
			field := fmt.Sprintf("%s.claims[%d]", field, j)
			if c.Name == "" || strings.ContainsAny(c.Name, "[]") {
				t.refuse(field+".name", v1alpha1.ReasonNotSupported, "%q: a claim is named without brackets; nested claims are not supported", c.Name)
			}
			if c.Values == nil {
				c.Values = []string{}
			}
			t.checkAsked(field+".values", c.Values)
			authorization.Claims = append(authorization.Claims, ir.Claim{Name: c.Name, Values: sortedSet(c.Values)})
		}
		out.Authorizations = append(out.Authorizations, authorization)
	}
	return out
}

// isIssuer: Istio reads a * at either end as a pattern, and what nobody can see
// or what separates names elsewhere is in no issuer (RFC 7519: a StringOrURI).
func isIssuer(text string) bool {
	return text != "" && !strings.HasPrefix(text, "*") && !strings.HasSuffix(text, "*") &&
		!strings.ContainsFunc(text, func(c rune) bool { return c == '|' || unicode.IsSpace(c) || !unicode.IsPrint(c) })
}

// checkAsked refuses a list that is there and asks nothing, and values that
// Istio's policies would read as patterns: both would let in more than the rule
// seems to say.
func (t *ruleTranslator) checkAsked(field string, values []string) {
	if values != nil && len(values) == 0 {
		t.refuse(field, v1alpha1.ReasonInvalid, "the list is empty and asks nothing; write values or remove the field")
	}
	for _, v := range values {
		if v == "" || strings.HasPrefix(v, "*") || strings.HasSuffix(v, "*") {
			t.refuse(field, v1alpha1.ReasonNotSupported, "%q: values are compared as they are and may not be empty or begin or end with *", v)
		}
	}
}

func sortedSet(values []string) []string {
	out := slices.Sorted(slices.Values(values))
	return slices.Compact(out)
}

// keySetOf finds the keys of an authentication and reports what is wrong with
// them. A missing Secret closes the rule; keys that cannot be used do not: no
// token is valid then, and everybody gets 401.
func (t *ruleTranslator) keySetOf(field string, a v1alpha1.JWTAuthentication) string {
	if (a.JWKSURI == "") == (a.JWKSSecret == "") {
		t.refuse(field, v1alpha1.ReasonInvalid, "write exactly one of jwksUri and jwksSecret")
		return ""
	}
	name := keySetName(t.object.Namespace, a)
	if a.JWKSURI != "" {
		field += ".jwksUri"
		if _, known := t.keySets[name]; !known {
			t.keySets[name] = t.fetchedKeys(a.JWKSURI)
		}
	} else {
		field += ".jwksSecret"
		if _, known := t.keySets[name]; !known {
			t.keySets[name] = t.secretKeys(a.JWKSSecret)
		}
	}
	set := t.keySets[name]
	switch {
	case set.problem == "":
	case set.reason == v1alpha1.ReasonNotFound:
		t.unresolved(field, set.reason, "%s", set.problem)
	default:
		t.report(apiRuleProblem(t.object, v1alpha1.ConditionResolvedRefs, t.field+field).because(set.reason, "%s", set.problem))
	}
	return name
}

// keySetName tells where the keys of an authentication are.
func keySetName(namespace string, a v1alpha1.JWTAuthentication) string {
	if a.JWKSURI != "" {
		return "uri:" + a.JWKSURI
	}
	return "secret:" + namespace + "/" + a.JWKSSecret
}

func (t *ruleTranslator) fetchedKeys(uri string) keySet {
	result, fetched := t.jwks[uri]
	switch {
	case !fetched:
		return keySet{json: ir.NoKeys, reason: v1alpha1.ReasonPending, problem: "the keys of " + uri + " have not been fetched yet; until then every token is refused"}
	case result.JSON == "":
		return keySet{json: ir.NoKeys, reason: ReasonKeysUnusable, problem: fmt.Sprintf("the keys of %s cannot be fetched, every token is refused: %s", uri, result.Err)}
	}
	set := t.parsedKeys(result.JSON, uri)
	if set.problem == "" && result.Err != "" {
		set.reason, set.problem = ReasonKeysUnusable, fmt.Sprintf("the keys of %s are old, the last fetch failed: %s", uri, result.Err)
	}
	return set
}

func (t *ruleTranslator) secretKeys(secretName string) keySet {
	name := secretOf(t.object, secretName)
	secret, found := t.secrets[name]
	if !found {
		return keySet{json: ir.NoKeys, reason: v1alpha1.ReasonNotFound, problem: fmt.Sprintf("Secret %s does not exist", name)}
	}
	text, found := secret.Data[jwksKey]
	if value, plain := secret.StringData[jwksKey]; plain {
		text, found = []byte(value), true
	}
	if !found {
		return keySet{json: ir.NoKeys, reason: v1alpha1.ReasonNotFound, problem: fmt.Sprintf("Secret %s has no key %s", name, jwksKey)}
	}
	return t.parsedKeys(string(text), "Secret "+name.String())
}

func (t *ruleTranslator) parsedKeys(text, source string) keySet {
	public, err := jwk.Public(text)
	if limit := t.settings.Limits.KeySetBytes; err == nil && len(public) > limit {
		return keySet{json: ir.NoKeys, reason: ReasonTooLarge, problem: fmt.Sprintf(
			"the public keys of %s take %d bytes, and a key set may have %d; every token is refused", source, len(public), limit)}
	}
	if err != nil {
		return keySet{json: ir.NoKeys, reason: ReasonKeysUnusable, problem: fmt.Sprintf("%s holds no usable keys, every token is refused: %v", source, err)}
	}
	return keySet{json: public}
}

// checkIssuers lets a workload take one issuer's tokens by one key set only:
// Istio's RequestAuthentication is per workload, so a second one would be
// accepted under the first one's rules too. The older APIRule wins.
func (t *ruleTranslator) checkIssuers(jwt *ir.JWT, backends []ir.Backend) {
	if !t.served {
		return
	}
	claims := map[issuerUse]issuerClaim{}
	for _, b := range backends {
		workload := cmp.Or(t.destinations[b.Destination].Workload, b.Destination)
		for _, p := range jwt.Providers {
			use := issuerUse{workload: workload, issuer: p.Issuer}
			claim, taken := t.issuers[use]
			if taken && claim.keySet != p.KeySet {
				t.refuse(".jwt.authentications", ReasonIssuerConflict,
					"issuer %q has other keys (%s) in the older APIRule %s for %s; use the same jwksUri or jwksSecret", p.Issuer, claim.keySet, claim.owner, workload)
				return
			}
			if !taken {
				claims[use] = issuerClaim{keySet: p.KeySet, owner: name(t.object).String()}
			}
		}
	}
	maps.Copy(t.issuers, claims) // a rule that is closed claims nothing
}

// keep marks the key sets of a rule that is served.
func (t *ruleTranslator) keep(jwt *ir.JWT) *ir.JWT {
	if jwt == nil {
		return nil
	}
	for _, p := range jwt.Providers {
		set := t.keySets[p.KeySet]
		set.used = set.used || t.served
		t.keySets[p.KeySet] = set
	}
	return jwt
}
