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
	// Client is the address of the client, as far as anybody is believed who tells
	// it; without a port.
	Client string
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

// ClientIP is Client.
func (req *Request) ClientIP() string { return req.Client }

// FindClient sets Client, before anything is appended to X-Forwarded-For. The
// right end of that header is what proxies before this one wrote; trusted says
// how many of them are believed. On an edge the connection's other end is the
// client when there are none, and else the last of them; inside, it is a proxy
// that wrote one more (Envoy: xff_num_trusted_hops, use_remote_address).
func (req *Request) FindClient(edge bool, trusted int) {
	req.Client = req.DirectIP()
	if !edge {
		trusted++
	}
	if trusted == 0 {
		return
	}
	lines := req.HTTP.Header["X-Forwarded-For"]
	for i := len(lines) - 1; i >= 0; i-- {
		entries := strings.Split(lines[i], ",")
		if trusted > len(entries) {
			trusted -= len(entries)
			continue
		}
		if ip, err := netip.ParseAddr(strings.TrimSpace(entries[len(entries)-trusted])); err == nil {
			req.Client = ip.Unmap().String()
		}
		return
	}
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
