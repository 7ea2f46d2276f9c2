package ir

import "slices"

// Alternative is one way to satisfy a [JWT]: the token is valid, its iss is one
// of Issuers, its sub is not empty, and all of the rest holds.
type Alternative struct {
	Issuers []string
	// AnyAudience: aud names one of these; empty: any.
	AnyAudience []string
	// AllAudiences: aud names each of these.
	AllAudiences []string
	// Scopes must all be in ScopeClaim, an array or a space-delimited string.
	ScopeClaim string
	Scopes     []string
	Claims     []Claim
}

// ScopeClaims are the claims that scopes are looked for in.
func ScopeClaims() []string { return []string{"scp", "scope", "scopes"} }

// Alternatives spells out the JWT: a token is let in when it satisfies one of
// them. Both outputs write their policies from this, so that they agree.
func (j *JWT) Alternatives() []Alternative {
	authorizations := j.Authorizations
	if len(authorizations) == 0 {
		authorizations = []JWTAuthorization{{}}
	}
	var all []Alternative
	for _, group := range j.byAudiences() {
		for _, a := range authorizations {
			alternative := Alternative{
				Issuers:      group.issuers,
				AnyAudience:  group.audiences,
				AllAudiences: a.Audiences,
				Claims:       a.Claims,
			}
			if len(a.Scopes) == 0 {
				all = append(all, alternative)
				continue
			}
			for _, claim := range ScopeClaims() {
				alternative.ScopeClaim, alternative.Scopes = claim, a.Scopes
				all = append(all, alternative)
			}
		}
	}
	return all
}

type issuers struct{ issuers, audiences []string }

// byAudiences takes issuers together whose tokens are for the same audiences, so
// that they do not multiply what follows.
func (j *JWT) byAudiences() []issuers {
	var all []issuers
	for _, p := range j.Providers {
		i := slices.IndexFunc(all, func(g issuers) bool { return slices.Equal(g.audiences, p.Audiences) })
		if i < 0 {
			all = append(all, issuers{audiences: p.Audiences})
			i = len(all) - 1
		}
		if !slices.Contains(all[i].issuers, p.Issuer) {
			all[i].issuers = append(all[i].issuers, p.Issuer)
		}
	}
	return all
}

// Shadows says whether every request that matches later matches r too, so that
// later, tried after r, never decides.
func (r *Rule) Shadows(later *Rule) bool {
	return r.Path.Covers(later.Path) && coversMethods(r.Methods, later.Methods) && isSubset(r.Headers, later.Headers)
}

func coversMethods(ours, theirs []string) bool {
	return len(ours) == 0 || (len(theirs) > 0 && isSubset(theirs, ours))
}

// isSubset says whether each of some is in all.
func isSubset[T comparable](some, all []T) bool {
	have := make(map[T]bool, len(all))
	for _, v := range all {
		have[v] = true
	}
	for _, v := range some {
		if !have[v] {
			return false
		}
	}
	return true
}
