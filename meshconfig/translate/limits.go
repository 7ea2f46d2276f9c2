package translate

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Limits are what APIRules may take of the gateways they share. They keep one
// team's rules from filling what a data plane can receive, hold or compute for
// all; who exceeds one is refused with [ReasonTooLarge] and nobody else notices.
type Limits struct {
	// APIRule, Namespace and Gateway are budgets of one APIRule, of all APIRules
	// of a namespace, and of all that one Gateway serves.
	APIRule, Namespace, Gateway Budget
	// KeySetBytes is the size of one JWK Set, reduced to its public keys.
	KeySetBytes int
	// Endpoints and Identities are how many a port of a Service may have, and
	// NamespaceEndpoints those of all that leads to a namespace, each port for
	// itself. Budget Namespace bounds the bytes that its destinations take, too.
	Endpoints, Identities, NamespaceEndpoints int
}

// Budget bounds what goes to the data planes.
type Budget struct {
	// Bytes of resources, an upper estimate.
	Bytes int
	// Matchers: conditions that requests are held against. A jwt rule has those of
	// every combination of its providers and authorizations.
	Matchers int
	// KeySets: pairs of an issuer and where its keys are. Gateways hold the keys of
	// each pair.
	KeySets int
	// Hosts, as written in spec.hosts.
	Hosts int
}

// The defaults have room for 2,000 small APIRules in a namespace, served with and
// without TLS, and for twice that on a gateway; and a gateway at its limits stays
// below the message of 64 MiB that proxies take.
func defaultLimits() Limits {
	return Limits{
		APIRule:     Budget{Bytes: 512 << 10, Matchers: 4096, KeySets: 16, Hosts: 16},
		Namespace:   Budget{Bytes: 16 << 20, Matchers: 100_000, KeySets: 64, Hosts: 10_000},
		Gateway:     Budget{Bytes: 40 << 20, Matchers: 300_000, KeySets: 256, Hosts: 50_000},
		KeySetBytes: 32 << 10,
		Endpoints:   2000, Identities: 16, NamespaceEndpoints: 50_000,
	}
}

func (l Limits) withDefaults() Limits {
	d := defaultLimits()
	l.KeySetBytes = cmp.Or(l.KeySetBytes, d.KeySetBytes)
	l.Endpoints, l.Identities = cmp.Or(l.Endpoints, d.Endpoints), cmp.Or(l.Identities, d.Identities)
	l.NamespaceEndpoints = cmp.Or(l.NamespaceEndpoints, d.NamespaceEndpoints)
	l.APIRule, l.Namespace, l.Gateway = l.APIRule.or(d.APIRule), l.Namespace.or(d.Namespace), l.Gateway.or(d.Gateway)
	return l
}

func (b Budget) or(d Budget) Budget {
	return Budget{
		Bytes: cmp.Or(b.Bytes, d.Bytes), Matchers: cmp.Or(b.Matchers, d.Matchers),
		KeySets: cmp.Or(b.KeySets, d.KeySets), Hosts: cmp.Or(b.Hosts, d.Hosts),
	}
}

// Validate tells which limits make no sense: 0 stands for the default, and a
// larger scope has at least what a smaller one may have.
func (l Limits) Validate() error {
	var errs []error
	for _, b := range l.fields() {
		if *b.value < 0 {
			errs = append(errs, fmt.Errorf("the limit %s is %d; it must not be negative", b.name, *b.value))
		}
	}
	full := l.withDefaults()
	for _, scopes := range []struct {
		small, large   string
		within, limits Budget
	}{{"apirule", "namespace", full.APIRule, full.Namespace}, {"namespace", "gateway", full.Namespace, full.Gateway}} {
		large := scopes.limits.fields()
		for i, small := range scopes.within.fields() {
			if *small.value > *large[i].value {
				errs = append(errs, fmt.Errorf("the limit %s.%s (%d) is above %s.%s (%d)",
					scopes.small, small.name, *small.value, scopes.large, small.name, *large[i].value))
			}
		}
	}
	return errors.Join(errs...)
}

// Set sets limits by name: apirule.matchers, namespace.bytes, gateway.hosts,
// keyset.bytes and so on.
func (l *Limits) Set(values map[string]int) error {
	fields := l.fields()
	var errs []error
	for _, name := range sortedKeys(values) {
		i := slices.IndexFunc(fields, func(f limitField) bool { return f.name == name })
		if i < 0 {
			errs = append(errs, fmt.Errorf("there is no limit %q; use %s", name, strings.Join(LimitNames(), ", ")))
			continue
		}
		*fields[i].value = values[name]
	}
	return errors.Join(append(errs, l.Validate())...)
}

// LimitNames are the names that [Limits.Set] knows.
func LimitNames() []string {
	var names []string
	for _, f := range (&Limits{}).fields() {
		names = append(names, f.name)
	}
	return names
}

// String lists the limits as [Limits.Set] takes them.
func (l Limits) String() string {
	var all []string
	full := l.withDefaults()
	for _, f := range full.fields() {
		all = append(all, fmt.Sprintf("%s=%d", f.name, *f.value))
	}
	return strings.Join(all, ",")
}

type limitField struct {
	name  string
	value *int
}

func (l *Limits) fields() []limitField {
	var all []limitField
	for _, scope := range []struct {
		name   string
		budget *Budget
	}{{"apirule", &l.APIRule}, {"namespace", &l.Namespace}, {"gateway", &l.Gateway}} {
		for _, f := range scope.budget.fields() {
			all = append(all, limitField{scope.name + "." + f.name, f.value})
		}
	}
	return append(all, limitField{"keyset.bytes", &l.KeySetBytes}, limitField{"service.endpoints", &l.Endpoints},
		limitField{"service.identities", &l.Identities}, limitField{"namespace.endpoints", &l.NamespaceEndpoints})
}

func (b *Budget) fields() []limitField {
	return []limitField{{"bytes", &b.Bytes}, {"matchers", &b.Matchers}, {"keysets", &b.KeySets}, {"hosts", &b.Hosts}}
}
