package serve

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

	"github.com/lambdamesh/lambdamesh/meshconfig/proxy/compile"
	"github.com/lambdamesh/lambdamesh/meshconfig/proxy/request"
	"github.com/lambdamesh/lambdamesh/pkg/apis/headers"
)

// exchange is one request on its way through the proxy. It belongs to the
// goroutine of the request.
type exchange struct {
	request.Request
	server *Server
	state  *snapshot
	hcm    *compile.HCM
	w      http.ResponseWriter

	table    *compile.RouteTable
	vhost    *compile.VirtualHost
	route    *compile.Route
	weighted *compile.WeightedCluster
	cluster  string

	sending    *requestBody // what goes to the upstream; nil without a body
	attempt    *attempt     // the one under way
	upgrade    string       // the protocol of a request to upgrade
	onResponse []func(http.Header)
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
		e.Reply(code, reason, http.StatusText(code), nil)
		return
	}
	if e.HTTP.Method == http.MethodConnect {
		e.Reply(http.StatusMethodNotAllowed, "connect_not_supported", "CONNECT is not supported", nil)
		return
	}
	if e.upgrade != "" && !e.upgradeAllowed() {
		e.Reply(http.StatusForbidden, "upgrade_failed", "", nil)
		return
	}
	e.findRoute()
	if !e.runFilters() {
		return
	}
	switch {
	case e.route == nil:
		e.Reply(http.StatusNotFound, "route_not_found", "", nil)
	case e.vhost.RequireTLS != routev3.VirtualHost_NONE && e.Conn.TLS == nil:
		e.redirectTLS()
	case e.route.Direct != nil:
		e.Reply(e.route.Direct.Status, "direct_response", e.route.Direct.Body, nil)
	case e.route.Redirect != nil:
		e.sendRedirect(e.route.Redirect.Location(&e.Request), e.route.Redirect.Code)
	default:
		e.forward()
	}
}

func (e *exchange) findRoute() {
	e.table = e.hcm.Routes
	if e.hcm.RouteName != "" {
		e.table = e.state.routes[e.hcm.RouteName]
	}
	if e.table == nil {
		return
	}
	if e.vhost = e.table.VirtualHost(e.Host); e.vhost == nil {
		return
	}
	if e.route = e.vhost.Find(&e.Request); e.route == nil {
		return
	}
	e.RouteName = e.route.Name
	if e.route.Forward != nil {
		e.cluster, e.weighted = e.route.Forward.Pick()
	}
}

func (e *exchange) redirectTLS() {
	if e.vhost.RequireTLS == routev3.VirtualHost_EXTERNAL_ONLY && internalAddress(e.DirectIP()) {
		e.Reply(http.StatusNotFound, "route_not_found", "", nil)
		return
	}
	host := e.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	e.sendRedirect("https://"+host+e.PathAndQuery(), http.StatusMovedPermanently)
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
	allowed := e.hcm.Upgrades[e.upgrade]
	// A route may decide otherwise; it is looked up for that alone.
	e.findRoute()
	if e.route != nil && e.route.Forward != nil {
		if v, ok := e.route.Forward.Upgrades[e.upgrade]; ok {
			allowed = v
		}
	}
	return allowed && e.HTTP.ProtoMajor == 1
}

const (
	tooManyHeaders = "http.too_many_headers"
	lowVersion     = "http1.low_version"
)

// sanitize brings the request into its canonical form and removes what a client
// must not say. It returns why the request is refused, if it is.
func (e *exchange) sanitize() string {
	h := e.HTTP.Header
	if reason := e.Conn.Violation(); reason != "" {
		return reason
	}
	if !e.hcm.HTTP10 && !e.HTTP.ProtoAtLeast(1, 1) {
		return lowVersion
	}
	// HTTP/2 carries any text as a method, and net/http passes it on.
	if !httpguts.ValidHeaderFieldName(e.HTTP.Method) {
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
	if lines > e.hcm.MaxHeaders {
		return tooManyHeaders
	}
	if e.hcm.RejectUnderscore || e.hcm.DropUnderscore {
		for name := range h {
			if strings.IndexByte(name, '_') < 0 {
				continue
			}
			if e.hcm.RejectUnderscore {
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
	e.hcm.Early.Apply(&e.Request, h)
	dropIdentity(e.HTTP.Trailer)
	return ""
}

func (e *exchange) sanitizeHost() string {
	host := e.HTTP.Host
	if host == "" && e.HTTP.ProtoAtLeast(1, 1) {
		return "http.missing_host"
	}
	if strings.ContainsAny(host, "/\\@?# \t") {
		return "http.invalid_authority"
	}
	if e.hcm.StripPort || e.hcm.StripMatching {
		if h, port, err := net.SplitHostPort(host); err == nil {
			if e.hcm.StripPort || port == fmt.Sprint(e.Conn.LocalPort()) {
				if strings.Contains(h, ":") {
					h = "[" + h + "]"
				}
				host = h
			}
		}
	}
	if e.hcm.StripDot {
		host = strings.TrimSuffix(host, ".")
	}
	e.Host = host
	return ""
}

func (e *exchange) sanitizePath() string {
	target := e.HTTP.RequestURI
	if e.HTTP.Method == http.MethodConnect {
		e.Path = "/"
		return ""
	}
	if strings.IndexByte(target, '#') >= 0 {
		return "http.fragment_in_path"
	}
	if !strings.HasPrefix(target, "/") {
		// Absolute form (RFC 9112, section 3.2.2): the authority is e.Host already.
		_, rest, ok := strings.Cut(target, "://")
		if !ok && (target != "*" || e.HTTP.Method != http.MethodOptions) {
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
	e.Path, e.Query, _ = strings.Cut(target, "?")
	if e.Path == "*" {
		return ""
	}
	if e.hcm.RejectEscaped && hasEscapedSlash(e.Path) {
		return "path_normalization_failed"
	}
	if e.hcm.NormalizePath {
		var ok bool
		if e.Path, ok = normalize(e.Path); !ok {
			return "path_normalization_failed"
		}
	}
	if e.hcm.MergeSlashes {
		e.Path = mergeSlashes(e.Path)
	}
	return ""
}

// setForwarded tells the upstream who asked, and how.
func (e *exchange) setForwarded(h http.Header) {
	e.FindClient(e.hcm.Edge, e.hcm.TrustedHops)
	if e.hcm.Edge {
		if !e.hcm.SkipXFF {
			if ip := e.DirectIP(); ip != "" {
				if prior := h["X-Forwarded-For"]; len(prior) > 0 {
					ip = strings.Join(prior, ",") + "," + ip
				}
				h["X-Forwarded-For"] = []string{ip}
			}
		}
		h["X-Forwarded-Proto"] = []string{e.Scheme}
		delete(h, "X-Forwarded-Host")
	} else if len(h["X-Forwarded-Proto"]) == 0 {
		h["X-Forwarded-Proto"] = []string{e.Scheme}
	}
	if e.hcm.AppendPort {
		h["X-Forwarded-Port"] = []string{fmt.Sprint(e.Conn.LocalPort())}
	}
	if e.hcm.Via != "" {
		h["Via"] = append(h["Via"], e.hcm.Via)
	}
}

// setClientCert writes X-Forwarded-Client-Cert.
func (e *exchange) setClientCert(h http.Header) {
	key := request.Canonical(headers.ClientCert)
	if e.hcm.XFCC == hcmv3.HttpConnectionManager_ALWAYS_FORWARD_ONLY {
		return
	}
	if e.hcm.XFCC == hcmv3.HttpConnectionManager_SANITIZE || e.Conn.Peer() == nil {
		delete(h, key)
		return
	}
	if e.hcm.XFCC == hcmv3.HttpConnectionManager_FORWARD_ONLY {
		return
	}
	value := e.Conn.XFCC(e.hcm.XFCCSubject, e.hcm.XFCCURI, e.hcm.XFCCDNS)
	if e.hcm.XFCC == hcmv3.HttpConnectionManager_APPEND_FORWARD && len(h[key]) > 0 {
		value = strings.Join(h[key], ",") + "," + value
	}
	h[key] = []string{value}
}

func (e *exchange) setRequestID(h http.Header) {
	const key = "X-Request-Id"
	if !e.hcm.RequestID {
		return
	}
	if len(h[key]) > 0 && (!e.hcm.Edge || e.hcm.KeepRequestID || internalAddress(e.DirectIP())) {
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
	switch e.hcm.ServerHeader {
	case hcmv3.HttpConnectionManager_OVERWRITE:
		h["Server"] = []string{e.hcm.ServerName}
	case hcmv3.HttpConnectionManager_APPEND_IF_ABSENT:
		if len(h["Server"]) == 0 {
			h["Server"] = []string{e.hcm.ServerName}
		}
	}
	if e.hcm.ReturnRequestID {
		h["X-Request-Id"] = e.HTTP.Header["X-Request-Id"]
	}
	if e.hcm.Via != "" {
		h["Via"] = append(h["Via"], e.hcm.Via)
	}
	if e.unfinished() {
		// What is left of the body would be taken for the next request.
		h["Connection"] = []string{"close"}
	}
	for _, change := range e.onResponse {
		change(h)
	}
}
