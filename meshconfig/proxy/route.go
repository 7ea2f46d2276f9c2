package proxy

import (
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
)

// virtualHost returns the virtual host for a host: exact, then the longest
// suffix, then the longest prefix, then "*".
func (t *routeTable) virtualHost(host string) *virtualHost {
	if t.ignorePort {
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
	}
	host = lower(host)
	if v, ok := t.exact[host]; ok {
		return v
	}
	for _, w := range t.suffixes {
		if len(host) > len(w.text) && strings.HasSuffix(host, w.text) {
			return w.host
		}
	}
	for _, w := range t.prefixes {
		if len(host) > len(w.text) && strings.HasPrefix(host, w.text) {
			return w.host
		}
	}
	return t.any
}

// lower is strings.ToLower without a copy for what is lower already.
func lower(s string) string {
	for i := range len(s) {
		if c := s[i]; 'A' <= c && c <= 'Z' || c >= 0x80 {
			return strings.ToLower(s)
		}
	}
	return s
}

// find returns the first route of the virtual host that matches.
func (v *virtualHost) find(e *exchange) *route {
	for _, r := range v.routes {
		if r.match(e) && all(r.rest, e) {
			return r
		}
	}
	return nil
}

// pick chooses the cluster; the second result is set for weighted ones.
func (f *forward) pick() (string, *weightedCluster) {
	if f.weighted == nil {
		return f.cluster, nil
	}
	n := rand.Uint32N(f.totalWeight)
	for i := range f.weighted {
		w := &f.weighted[i]
		if n < w.weight {
			return w.name, w
		}
		n -= w.weight
	}
	panic("unreachable: the weights add up to the total")
}

// rewrite returns the path to send.
func (f *forward) rewrite(path string) string {
	switch {
	case f.prefixRewrite != "" && f.exactMatch:
		return f.prefixRewrite
	case f.prefixRewrite != "":
		return f.prefixRewrite + path[min(len(f.matchedPrefix), len(path)):]
	case f.regexRewrite != nil:
		return f.regexRewrite.ReplaceAllString(path, f.substitution)
	}
	return path
}

// changeRequest applies the header changes of the weighted cluster, route,
// virtual host and route table, most specific first unless configured
// otherwise.
func (e *exchange) changeRequest(w *weightedCluster, header http.Header) {
	levels := [4]*mutation{nil, &e.route.request, &e.vhost.request, &e.table.request}
	if w != nil {
		levels[0] = &w.request
	}
	e.change(levels, header)
}

func (e *exchange) changeResponse(w *weightedCluster, header http.Header) {
	levels := [4]*mutation{nil, &e.route.response, &e.vhost.response, &e.table.response}
	if w != nil {
		levels[0] = &w.response
	}
	e.change(levels, header)
}

func (e *exchange) change(levels [4]*mutation, header http.Header) {
	for i := range levels {
		m := levels[i]
		if e.table.leastSpecificFirst {
			m = levels[len(levels)-1-i]
		}
		if m != nil {
			m.apply(e, header)
		}
	}
}
