package request

import (
	"net"
	"net/http"
	"net/netip"
	"strings"
)

// Request is what is known about a request and what configuration may ask about
// it. It belongs to the goroutine that serves it.
type Request struct {
	// HTTP is the request as net/http read it; its header is changed in place.
	HTTP *http.Request
	// Conn is the connection it came over.
	Conn *Conn
	// Host is the authority as it is routed and sent on.
	Host string
	// Path is escaped and without query.
	Path string
	// Query is what follows the question mark.
	Query string
	// Scheme is http or https.
	Scheme string
	// Edge says that the other end of the connection is the client, so that
	// nobody else is believed to know its address.
	Edge bool
	// RouteName is the name of the route, once there is one.
	RouteName string
	// Metadata is what filters found out, by filter (Envoy's dynamic metadata).
	Metadata map[string]map[string]any
	// Local is the answer that the proxy itself gives.
	Local struct {
		Code          int
		Details, Body string
	}
}

// PathAndQuery is path and query.
func (req *Request) PathAndQuery() string {
	if req.Query == "" {
		return req.Path
	}
	return req.Path + "?" + req.Query
}

// DirectIP is the address of the other end of the connection.
func (req *Request) DirectIP() string {
	host, _, err := net.SplitHostPort(req.HTTP.RemoteAddr)
	if err != nil {
		return ""
	}
	return host
}

// RemoteIP is the address of the client: on edge listeners the connection's,
// else what the proxy before this one wrote into X-Forwarded-For.
func (req *Request) RemoteIP() string {
	if !req.Edge {
		if values := req.HTTP.Header["X-Forwarded-For"]; len(values) > 0 {
			list := strings.Split(values[len(values)-1], ",")
			if ip, err := netip.ParseAddr(strings.TrimSpace(list[len(list)-1])); err == nil {
				return ip.String()
			}
		}
	}
	return req.DirectIP()
}

// SetMetadata notes what a filter found out.
func (req *Request) SetMetadata(filter, key string, value any) {
	if req.Metadata == nil {
		req.Metadata = map[string]map[string]any{}
	}
	if req.Metadata[filter] == nil {
		req.Metadata[filter] = map[string]any{}
	}
	req.Metadata[filter][key] = value
}

// Lower is strings.ToLower without a copy for what is lower already.
func Lower(s string) string {
	for i := range len(s) {
		if c := s[i]; 'A' <= c && c <= 'Z' || c >= 0x80 {
			return strings.ToLower(s)
		}
	}
	return s
}
