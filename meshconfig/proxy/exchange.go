package proxy

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"golang.org/x/net/http/httpguts"

	"github.com/lambdamesh/lambdamesh/pkg/apis/headers"
)

// exchange is one request on its way through the proxy. It belongs to the
// goroutine of the request.
type exchange struct {
	proxy *Proxy
	state *snapshot
	hcm   *hcm
	conn  *conn
	w     http.ResponseWriter
	r     *http.Request // its header is changed in place

	host  string // the authority as it is routed and sent on
	path  string // escaped, without query
	query string

	table    *routeTable
	vhost    *virtualHost
	route    *route
	weighted *weightedCluster
	cluster  string

	sending    *requestBody // what goes to the upstream; nil without a body
	upgrade    string       // the protocol of a request to upgrade
	metadata   map[string]map[string]any
	onResponse func(http.Header)
	local      struct {
		code          int
		details, body string
	}
}

func (e *exchange) requestPath() string {
	if e.query == "" {
		return e.path
	}
	return e.path + "?" + e.query
}

func (e *exchange) scheme() string {
	switch {
	case e.hcm.scheme != "":
		return e.hcm.scheme
	case e.conn.tls != nil:
		return "https"
	default:
		return "http"
	}
}

// directIP is the address of the other end of the connection.
func (e *exchange) directIP() string {
	host, _, err := net.SplitHostPort(e.r.RemoteAddr)
	if err != nil {
		return ""
	}
	return host
}

// remoteIP is the address of the client: on edge listeners the connection's,
// else what the proxy before this one wrote into X-Forwarded-For.
func (e *exchange) remoteIP() string {
	if !e.hcm.edge {
		if values := e.r.Header["X-Forwarded-For"]; len(values) > 0 {
			list := strings.Split(values[len(values)-1], ",")
			if ip, err := netip.ParseAddr(strings.TrimSpace(list[len(list)-1])); err == nil {
				return ip.String()
			}
		}
	}
	return e.directIP()
}

// serve answers the request.
func (e *exchange) serve() {
	if reason := e.sanitize(); reason != "" {
		code := http.StatusBadRequest
		switch reason {
		case tooManyHeaders:
			code = http.StatusRequestHeaderFieldsTooLarge
		case lowVersion:
			code = http.StatusUpgradeRequired
		}
		e.w.Header().Set("Connection", "close")
		e.reply(code, reason, http.StatusText(code), nil)
		return
	}
	if e.r.Method == http.MethodConnect {
		e.reply(http.StatusMethodNotAllowed, "connect_not_supported", "CONNECT is not supported", nil)
		return
	}
	if e.upgrade != "" && !e.upgradeAllowed() {
		e.reply(http.StatusForbidden, "upgrade_failed", "", nil)
		return
	}
	e.findRoute()
	if !e.runFilters() {
		return
	}
	switch {
	case e.route == nil:
		e.reply(http.StatusNotFound, "route_not_found", "", nil)
	case e.vhost.requireTLS != routev3.VirtualHost_NONE && e.conn.tls == nil:
		e.redirectTLS()
	case e.route.direct != nil:
		e.reply(e.route.direct.status, "direct_response", e.route.direct.body, nil)
	case e.route.redirect != nil:
		e.sendRedirect(e.route.redirect.location(e), e.route.redirect.code)
	default:
		e.forward()
	}
}

func (e *exchange) findRoute() {
	e.table = e.hcm.routes
	if e.hcm.routeName != "" {
		e.table = e.state.routes[e.hcm.routeName]
	}
	if e.table == nil {
		return
	}
	if e.vhost = e.table.virtualHost(e.host); e.vhost == nil {
		return
	}
	if e.route = e.vhost.find(e); e.route != nil && e.route.forward != nil {
		e.cluster, e.weighted = e.route.forward.pick()
	}
}

func (e *exchange) redirectTLS() {
	if e.vhost.requireTLS == routev3.VirtualHost_EXTERNAL_ONLY && internalAddress(e.directIP()) {
		e.reply(http.StatusNotFound, "route_not_found", "", nil)
		return
	}
	host := e.host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	e.sendRedirect("https://"+host+e.requestPath(), http.StatusMovedPermanently)
}

func (e *exchange) sendRedirect(location string, code int) {
	header := e.w.Header()
	header.Set("Location", location)
	header.Set("Content-Length", "0")
	e.changeResponse(nil, header)
	e.finishHeader(header)
	e.w.WriteHeader(code)
}

func (e *exchange) upgradeAllowed() bool {
	allowed := e.hcm.upgrades[e.upgrade]
	// A route may decide otherwise; it is looked up for that alone.
	e.findRoute()
	if e.route != nil && e.route.forward != nil {
		if v, ok := e.route.forward.upgrades[e.upgrade]; ok {
			allowed = v
		}
	}
	return allowed && e.r.ProtoMajor == 1
}

const (
	tooManyHeaders = "http.too_many_headers"
	lowVersion     = "http1.low_version"
)

// sanitize brings the request into its canonical form and removes what a client
// must not say. It returns why the request is refused, if it is.
func (e *exchange) sanitize() string {
	h := e.r.Header
	if reason := e.conn.Violation(); reason != "" {
		return reason
	}
	if !e.hcm.http10 && !e.r.ProtoAtLeast(1, 1) {
		return lowVersion
	}
	// HTTP/2 carries any text as a method, and net/http passes it on.
	if !httpguts.ValidHeaderFieldName(e.r.Method) {
		return "http.invalid_method"
	}
	if reason := e.sanitizeHost(); reason != "" {
		return reason
	}
	if reason := e.sanitizePath(); reason != "" {
		return reason
	}
	lines := 0
	for _, values := range h {
		lines += len(values)
	}
	if lines > e.hcm.maxHeaders {
		return tooManyHeaders
	}
	if e.hcm.rejectUnderscore || e.hcm.dropUnderscore {
		for name := range h {
			if strings.IndexByte(name, '_') < 0 {
				continue
			}
			if e.hcm.rejectUnderscore {
				return "http.unexpected_underscore"
			}
			delete(h, name)
		}
	}
	e.removeHopByHop(h)
	// The router's own headers are never taken from a client: they would change
	// timeouts and retries.
	for name := range h {
		if strings.HasPrefix(name, "X-Envoy-") {
			delete(h, name)
		}
	}
	e.setForwarded(h)
	e.setClientCert(h)
	e.setRequestID(h)
	e.hcm.early.apply(e, h)
	dropIdentity(e.r.Trailer)
	return ""
}

func (e *exchange) sanitizeHost() string {
	host := e.r.Host
	if host == "" && e.r.ProtoAtLeast(1, 1) {
		return "http.missing_host"
	}
	if strings.ContainsAny(host, "/\\@?# \t") {
		return "http.invalid_authority"
	}
	if e.hcm.stripPort || e.hcm.stripMatching {
		if h, port, err := net.SplitHostPort(host); err == nil {
			if e.hcm.stripPort || port == fmt.Sprint(e.conn.localPort()) {
				if strings.Contains(h, ":") {
					h = "[" + h + "]"
				}
				host = h
			}
		}
	}
	if e.hcm.stripDot {
		host = strings.TrimSuffix(host, ".")
	}
	e.host = host
	return ""
}

func (e *exchange) sanitizePath() string {
	target := e.r.RequestURI
	if e.r.Method == http.MethodConnect {
		e.path = "/"
		return ""
	}
	if strings.IndexByte(target, '#') >= 0 {
		return "http.fragment_in_path"
	}
	if !strings.HasPrefix(target, "/") {
		// Absolute form (RFC 9112, section 3.2.2): the authority is e.host already.
		_, rest, ok := strings.Cut(target, "://")
		if !ok && (target != "*" || e.r.Method != http.MethodOptions) {
			return "http.invalid_path"
		}
		if target != "*" {
			i := strings.IndexAny(rest, "/?")
			switch {
			case i < 0:
				target = "/"
			case rest[i] == '?':
				target = "/" + rest[i:]
			default:
				target = rest[i:]
			}
		}
	}
	e.path, e.query, _ = strings.Cut(target, "?")
	if e.path == "*" {
		return ""
	}
	if e.hcm.rejectEscaped && hasEscapedSlash(e.path) {
		return "path_normalization_failed"
	}
	if e.hcm.normalizePath {
		var ok bool
		if e.path, ok = normalize(e.path); !ok {
			return "path_normalization_failed"
		}
	}
	if e.hcm.mergeSlashes {
		e.path = mergeSlashes(e.path)
	}
	return ""
}

// setForwarded tells the upstream who asked, and how.
func (e *exchange) setForwarded(h http.Header) {
	if e.hcm.edge {
		if !e.hcm.skipXFF {
			if ip := e.directIP(); ip != "" {
				if prior := h["X-Forwarded-For"]; len(prior) > 0 {
					ip = strings.Join(prior, ",") + "," + ip
				}
				h["X-Forwarded-For"] = []string{ip}
			}
		}
		h["X-Forwarded-Proto"] = []string{e.scheme()}
		delete(h, "X-Forwarded-Host")
	} else if len(h["X-Forwarded-Proto"]) == 0 {
		h["X-Forwarded-Proto"] = []string{e.scheme()}
	}
	if e.hcm.appendPort {
		h["X-Forwarded-Port"] = []string{fmt.Sprint(e.conn.localPort())}
	}
	if e.hcm.via != "" {
		h["Via"] = append(h["Via"], e.hcm.via)
	}
}

// setClientCert writes X-Forwarded-Client-Cert.
func (e *exchange) setClientCert(h http.Header) {
	key := canonical(headers.ClientCert)
	if e.hcm.xfcc == hcmv3.HttpConnectionManager_ALWAYS_FORWARD_ONLY {
		return
	}
	if e.hcm.xfcc == hcmv3.HttpConnectionManager_SANITIZE || e.conn.peer() == nil {
		delete(h, key)
		return
	}
	if e.hcm.xfcc == hcmv3.HttpConnectionManager_FORWARD_ONLY {
		return
	}
	value := e.conn.xfcc(e.hcm)
	if e.hcm.xfcc == hcmv3.HttpConnectionManager_APPEND_FORWARD && len(h[key]) > 0 {
		value = strings.Join(h[key], ",") + "," + value
	}
	h[key] = []string{value}
}

func (e *exchange) setRequestID(h http.Header) {
	const key = "X-Request-Id"
	if !e.hcm.requestID {
		return
	}
	if len(h[key]) > 0 && (!e.hcm.edge || e.hcm.keepRequestID || internalAddress(e.directIP())) {
		return
	}
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	text := hex.EncodeToString(b[:])
	h[key] = []string{text[:8] + "-" + text[8:12] + "-" + text[12:16] + "-" + text[16:20] + "-" + text[20:]}
}

func internalAddress(ip string) bool {
	addr, err := netip.ParseAddr(ip)
	return err == nil && (addr.IsLoopback() || addr.IsPrivate())
}

// finishHeader adds what every answer has.
func (e *exchange) finishHeader(h http.Header) {
	switch e.hcm.serverHeader {
	case hcmv3.HttpConnectionManager_OVERWRITE:
		h["Server"] = []string{e.hcm.serverName}
	case hcmv3.HttpConnectionManager_APPEND_IF_ABSENT:
		if len(h["Server"]) == 0 {
			h["Server"] = []string{e.hcm.serverName}
		}
	}
	if e.hcm.returnRequestID {
		h["X-Request-Id"] = e.r.Header["X-Request-Id"]
	}
	if e.hcm.via != "" {
		h["Via"] = append(h["Via"], e.hcm.via)
	}
	if e.unfinished() {
		// What is left of the body would be taken for the next request.
		h["Connection"] = []string{"close"}
	}
	if e.onResponse != nil {
		e.onResponse(h)
	}
}
