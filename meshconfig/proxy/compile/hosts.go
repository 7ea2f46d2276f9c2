package compile

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"

	"github.com/lambdamesh/lambdamesh/meshconfig/proxy/request"
	"github.com/lambdamesh/lambdamesh/meshconfig/proxy/strict"
)

// servedHost is a host of a table that was served by itself (VHDS).
type servedHost struct {
	table   string
	domains []string
	host    *VirtualHost
}

// tableOf is the table that a host's resource is of: its name is the table's, a
// slash, and the host's.
func tableOf(name string) string { return name[:max(0, strings.LastIndexByte(name, '/'))] }

// acceptHosts compiles hosts and, if all are good, puts them into copies of their
// tables. A domain belongs to the host that was served last: the control plane has
// one owner of each, and a response may bring the new one before the former has
// given it up. What is gone may also be the table itself: it has no hosts.
func (r *Resources) acceptHosts(changed []*discoveryv3.Resource, gone []string) error {
	compiled := make(map[string]*servedHost, len(changed))
	var errs []error
	for _, one := range changed {
		var m routev3.VirtualHost
		if err := strict.Unmarshal(resource.VirtualHostType, one.GetResource(), &m); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", one.GetName(), err))
			continue
		}
		at := fmt.Sprintf("RouteConfiguration %q: virtual host %q", tableOf(one.GetName()), m.GetName())
		host, err := compileVirtualHost(at, &m, request.Regexes{})
		if err != nil {
			errs = append(errs, err)
			continue
		}
		compiled[one.GetName()] = &servedHost{table: tableOf(one.GetName()), domains: lowered(m.GetDomains()), host: host}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	tables := map[string]*RouteTable{}
	table := func(name string) *RouteTable {
		if t := r.Routes[name]; tables[name] == nil && t != nil && t.hostsApart {
			tables[name] = t.copy()
		}
		return tables[name]
	}
	for _, name := range gone {
		if old := r.hosts[name]; old != nil {
			if t := table(old.table); t != nil {
				t.remove(old)
			}
		}
		table(name) // of which there is no host
		delete(r.hosts, name)
	}
	for name, next := range compiled {
		if t := table(next.table); t != nil {
			if old := r.hosts[name]; old != nil {
				t.remove(old)
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(compiled)) {
		next := compiled[name]
		if t := table(next.table); t != nil {
			t.add(next)
		}
		r.hosts[name] = next
	}
	if len(tables) > 0 {
		r.Routes = maps.Clone(r.Routes)
		for name, t := range tables {
			t.complete = true
			r.Routes[name] = t
		}
	}
	return nil
}

// rejoin gives tables that came anew the hosts that were served for them.
func (r *Resources) rejoin() {
	var without []string
	for name, t := range r.Routes {
		if t.hostsApart && !t.complete {
			without = append(without, name)
		}
	}
	if len(without) == 0 {
		return
	}
	for _, name := range slices.Sorted(maps.Keys(r.hosts)) {
		h := r.hosts[name]
		if t := r.Routes[h.table]; t != nil && slices.Contains(without, h.table) {
			t.add(h)
			t.complete = true
		}
	}
}

// Complete tells whether the table has its hosts, also when they are served by
// themselves.
func (t *RouteTable) Complete() bool { return t != nil && (!t.hostsApart || t.complete) }

// copy of a table, to be changed.
func (t *RouteTable) copy() *RouteTable {
	out := *t
	out.exact, out.suffixes, out.prefixes = maps.Clone(t.exact), slices.Clone(t.suffixes), slices.Clone(t.prefixes)
	return &out
}

// add a host for its domains.
func (t *RouteTable) add(h *servedHost) {
	for _, domain := range h.domains {
		t.set(domain, h.host)
	}
	t.sort()
}

// set whose a domain is.
func (t *RouteTable) set(domain string, host *VirtualHost) {
	wild := func(all []wildcard, text string) []wildcard {
		if i := slices.IndexFunc(all, func(w wildcard) bool { return w.text == text }); i >= 0 {
			all[i].host = host
			return all
		}
		return append(all, wildcard{text, host})
	}
	switch {
	case domain == "*":
		t.any = host
	case strings.HasPrefix(domain, "*"):
		t.suffixes = wild(t.suffixes, domain[1:])
	case strings.HasSuffix(domain, "*"):
		t.prefixes = wild(t.prefixes, domain[:len(domain)-1])
	default:
		t.exact[domain] = host
	}
}

// sort wildcards as Envoy searches them.
func (t *RouteTable) sort() {
	longest := func(a, b wildcard) int { return len(b.text) - len(a.text) }
	slices.SortStableFunc(t.suffixes, longest)
	slices.SortStableFunc(t.prefixes, longest)
}

// remove a host from the domains that are still its own.
func (t *RouteTable) remove(h *servedHost) {
	its := func(w wildcard) bool { return w.host == h.host }
	if t.any == h.host {
		t.any = nil
	}
	t.suffixes, t.prefixes = slices.DeleteFunc(t.suffixes, its), slices.DeleteFunc(t.prefixes, its)
	for _, domain := range h.domains {
		if t.exact[domain] == h.host {
			delete(t.exact, domain)
		}
	}
}

func lowered(all []string) []string {
	out := make([]string, 0, len(all))
	for _, text := range all {
		out = append(out, strings.ToLower(text))
	}
	return out
}
