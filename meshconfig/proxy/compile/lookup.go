package compile

import (
	"math/rand/v2"
	"net"
	"strings"

	"github.com/lambdamesh/lambdamesh/meshconfig/proxy/request"
)

// VirtualHost returns the virtual host for a host: exact, then the longest
// suffix, then the longest prefix, then "*".
func (t *RouteTable) VirtualHost(host string) *VirtualHost {
	if t.ignorePort {
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
	}
	host = request.Lower(host)
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

// Find returns the first route of the virtual host that matches.
func (v *VirtualHost) Find(req *request.Request) *Route {
	for _, r := range v.routes {
		if r.match(req) && request.All(r.rest, req) {
			return r
		}
	}
	return nil
}

// Pick chooses the cluster; the second result is set for weighted ones.
func (f *forward) Pick() (string, *WeightedCluster) {
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

// Rewrite returns the path to send.
func (f *forward) Rewrite(path string) string {
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
