package ir

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp/syntax"
	"slices"
	"sort"
	"strings"
)

// Validate reports everything that an output could not write: dangling keys,
// ids used twice, values out of range.
func (m *Mesh) Validate() error {
	v := validator{mesh: m, keySets: map[string]bool{}, destinations: map[string]bool{}, workloads: map[string]bool{}, rules: map[string]bool{}}
	v.check(m.TrustDomain != "", "the trust domain is empty")
	for _, k := range m.KeySets {
		v.unique(v.keySets, "key set", k.Name)
		v.check(k.JWKS != "" && k.JWKS != `{"keys":[]}`, "key set %s is empty; NoKeys refuses every token", k.Name)
	}
	for i := range m.Workloads {
		w := m.Workloads[i]
		v.unique(v.workloads, "workload", w.Key())
		v.check(len(w.Selector) > 0, "workload %s selects everything", w.Key())
		v.check(w.Identity != "", "workload %s has no identity", w.Key())
		for _, a := range w.Allow {
			v.check(strings.HasPrefix(a.Principal, "spiffe://"), "workload %s: %q is no SPIFFE ID", w.Key(), a.Principal)
			v.check(a.Reason != AllowGateway || len(a.Rules) > 0, "workload %s lets the gateway in without a rule", w.Key())
		}
	}
	for i := range m.Destinations {
		d := m.Destinations[i]
		v.unique(v.destinations, "destination", d.Key())
		v.port(d.Key(), d.Port)
		v.check(d.Workload == "" || v.workloads[d.Workload], "destination %s names the unknown workload %s", d.Key(), d.Workload)
		for _, e := range d.Endpoints {
			v.check(e.Address != "", "destination %s has an endpoint without address", d.Key())
			v.port(d.Key(), e.Port)
		}
	}
	for i := range m.Gateways {
		v.gateway(&m.Gateways[i])
	}
	nodes := map[string]bool{}
	for i := range m.Sidecars {
		s := m.Sidecars[i]
		v.unique(nodes, "sidecar", s.Node)
		v.check(s.Workload == "" || v.workloads[s.Workload], "sidecar %s names the unknown workload %s", s.Node, s.Workload)
		for _, in := range s.Inbound {
			v.port(s.Node, in.Port)
			v.check(in.Bind != "" && in.Endpoint != "", "sidecar %s: an inbound listener needs bind and endpoint", s.Node)
		}
		for _, e := range s.Egress {
			v.port(s.Node, e.Port)
			v.check(e.Bind != "", "sidecar %s: an egress listener needs bind", s.Node)
			for _, d := range e.Destinations {
				v.check(v.destinations[d], "sidecar %s reaches the unknown destination %s", s.Node, d)
			}
		}
	}
	v.check(isSorted(m.Destinations, (*Destination).Key), "the destinations are not sorted by key")
	v.check(isSorted(m.Workloads, (*Workload).Key), "the workloads are not sorted by key")
	v.check(isSorted(m.Sidecars, func(s *Sidecar) string { return s.Node }), "the sidecars are not sorted by node")
	return errors.Join(v.errs...)
}

func isSorted[T any](all []*T, keyOf func(*T) string) bool {
	return sort.SliceIsSorted(all, func(i, j int) bool { return keyOf(all[i]) < keyOf(all[j]) })
}

type validator struct {
	mesh                                    *Mesh
	keySets, destinations, workloads, rules map[string]bool
	errs                                    []error
}

func (v *validator) check(ok bool, format string, args ...any) {
	if !ok {
		v.errs = append(v.errs, fmt.Errorf(format, args...))
	}
}

func (v *validator) unique(seen map[string]bool, what, key string) {
	v.check(key != "" && !seen[key], "%s %q is there twice or has no name", what, key)
	seen[key] = true
}

func (v *validator) port(where string, port uint32) {
	v.check(port >= 1 && port <= 65535, "%s: port %d is not between 1 and 65535", where, port)
}

func (v *validator) gateway(g *Gateway) {
	names := map[string]bool{}
	for i := range g.Servers {
		s := &g.Servers[i]
		v.unique(names, "server of gateway "+g.Key(), s.Name)
		v.port(g.Key(), s.Port)
		v.check(s.Protocol == HTTP || s.Protocol == HTTPS, "gateway %s: protocol %q", g.Key(), s.Protocol)
		v.check((s.Protocol == HTTPS) == (s.TLSSecret != ""), "gateway %s: server %s: a TLS secret goes with HTTPS", g.Key(), s.Name)
	}
	var hosts []string
	for i := range g.VirtualHosts {
		vh := g.VirtualHosts[i]
		v.check(len(vh.Hosts) > 0, "gateway %s: %s has no hosts", g.Key(), vh.Owner.Name)
		for _, h := range vh.Hosts {
			taken := slices.IndexFunc(hosts, func(other string) bool { return OverlappingHosts(h, other) })
			v.check(taken < 0, "gateway %s: host %s is taken", g.Key(), h)
		}
		hosts = append(hosts, vh.Hosts...)
		for j := range vh.Rules {
			v.rule(&vh.Rules[j])
		}
	}
}

func (v *validator) rule(r *Rule) {
	v.unique(v.rules, "rule", r.ID)
	// Expressions are parsed only: compiling is for who matches with them.
	_, err := syntax.Parse(r.Path.Regex(), syntax.Perl)
	v.check(strings.HasPrefix(r.Path.Value, "/") && err == nil, "rule %s: path %q", r.ID, r.Path.Value)
	v.check(r.Path.Kind != PathPrefix || strings.HasSuffix(r.Path.Value, "/"), "rule %s: the prefix %q does not end in /", r.ID, r.Path.Value)
	for _, h := range r.Headers {
		if h.Kind == MatchRegex {
			_, err := syntax.Parse(h.Value, syntax.Perl)
			v.check(err == nil, "rule %s: header %s: %v", r.ID, h.Name, err)
		}
	}
	if r.Closed != nil {
		v.check(r.Closed.Status >= 400 && r.Closed.Status < 600, "rule %s is closed with %d", r.ID, r.Closed.Status)
		return
	}
	v.check(len(r.Backends) > 0 || r.Redirect != nil, "rule %s has no backend", r.ID)
	v.check(len(r.Backends) == 0 || r.Redirect == nil, "rule %s has backends and a redirect", r.ID)
	for _, d := range r.Destinations() {
		v.check(v.destinations[d], "rule %s names the unknown destination %s", r.ID, d)
	}
	if r.APIKey != nil {
		v.check((r.APIKey.Header == "") != (r.APIKey.Query == "") && len(r.APIKey.Clients) > 0, "rule %s: an API key is in a header or in the query, and somebody has one", r.ID)
	}
	if l := r.RateLimit; l != nil {
		v.check(l.Requests > 0 && l.Burst > 0 && l.Per > 0, "rule %s: a rate limit without requests, burst or time", r.ID)
	}
	for _, b := range r.Backends {
		v.check(b.Weight > 0, "rule %s: a backend without weight", r.ID)
	}
	if r.ClientIPs != nil {
		v.check(len(r.ClientIPs.Allow)+len(r.ClientIPs.Deny) > 0, "rule %s: clientIPs without a range", r.ID)
		for _, text := range slices.Concat(r.ClientIPs.Allow, r.ClientIPs.Deny) {
			prefix, err := netip.ParsePrefix(text)
			v.check(err == nil && prefix == prefix.Masked(), "rule %s: %q is no canonical range of addresses", r.ID, text)
		}
	}
	if r.JWT != nil {
		v.check(len(r.JWT.Providers) > 0, "rule %s: jwt without provider", r.ID)
		for _, p := range r.JWT.Providers {
			v.check(p.Issuer != "" && v.keySets[p.KeySet], "rule %s names the unknown key set %s", r.ID, p.KeySet)
		}
	}
}
