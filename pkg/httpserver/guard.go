package httpserver

import (
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// GuardConfig says which names a guarded server goes by.
type GuardConfig struct {
	// Hosts are names, without port, that requests may ask for besides localhost
	// and loopback addresses.
	Hosts []string
	// Origins are web origins, such as http://localhost:3000, whose pages may
	// call. Default none.
	Origins []string
}

// BrowserGuard keeps web pages away from a server on loopback. Any page a
// developer visits can make their browser send requests to 127.0.0.1: across
// origins, or, after DNS rebinding, as if of the same origin under a name of the
// page's owner. Requests for another Host are answered 421 (RFC 9110, section
// 15.5.20), requests of a page of another origin 403. Programs send neither a
// foreign Host nor an Origin.
func BrowserGuard(config GuardConfig, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !config.knows(r.Host) {
			Problem(w, http.StatusMisdirectedRequest, "Unknown host",
				"this address answers to localhost and loopback addresses only")
			return
		}
		if !config.admits(r) {
			Problem(w, http.StatusForbidden, "Cross-origin request refused",
				"web pages of other origins may not call this address")
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (c GuardConfig) knows(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	if host == "localhost" || slices.Contains(c.Hosts, host) {
		return true
	}
	addr, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil && addr.IsLoopback()
}

// admits looks at Origin (RFC 6454), and at Sec-Fetch-Site (Fetch Metadata) for
// requests that browsers send without one, such as those for images.
func (c GuardConfig) admits(r *http.Request) bool {
	origins := r.Header.Values("Origin")
	if len(origins) > 0 {
		return len(origins) == 1 && slices.Contains(c.Origins, origins[0])
	}
	switch r.Header.Get("Sec-Fetch-Site") {
	case "", "none", "same-origin":
		return true
	default:
		return false
	}
}
