package serve

import (
	"net/http"
	"strings"

	"github.com/lambdamesh/lambdamesh/meshconfig/proxy/request"
	"github.com/lambdamesh/lambdamesh/pkg/apis/headers"
)

// hopHeaders are for one connection only (RFC 9110, section 7.6.1).
var hopHeaders = []string{ //nolint:gochecknoglobals // read only
	"Connection", "Proxy-Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Te", "Transfer-Encoding", "Upgrade", "Expect", "Http2-Settings",
}

// removeHopByHop removes those headers and the ones that Connection names. A
// request to upgrade is noted; "TE: trailers" passes.
func (e *exchange) removeHopByHop(h http.Header) {
	connection := h["Connection"]
	upgrade := false
	for _, value := range connection {
		for _, token := range strings.Split(value, ",") {
			name := request.Canonical(strings.TrimSpace(token))
			if name == "Upgrade" {
				upgrade = true
			}
			if name != "" && !headers.EndToEnd(strings.ToLower(name)) && name != "Te" && name != "Upgrade" {
				delete(h, name)
			}
		}
	}
	trailers := false
	for _, value := range h["Te"] {
		trailers = trailers || strings.Contains(strings.ToLower(value), "trailers")
	}
	if protocol := request.Lower(h.Get("Upgrade")); upgrade && protocol != "" && protocol != "h2c" {
		e.upgrade = protocol
	}
	for _, name := range hopHeaders {
		delete(h, name)
	}
	if trailers {
		h["Te"] = []string{"trailers"}
	}
}

// dropIdentity takes out of a request's trailers what tells who asks. No proxy
// says it there, and a server may merge trailers into headers (RFC 9110, section
// 6.5.1).
func dropIdentity(trailer http.Header) {
	for name := range trailer {
		if headers.Identity(name) {
			delete(trailer, name)
		}
	}
}

// removeHopByHopResponse does the same for an answer.
func removeHopByHopResponse(h http.Header) {
	for _, value := range h["Connection"] {
		for _, token := range strings.Split(value, ",") {
			if name := request.Canonical(strings.TrimSpace(token)); name != "" {
				delete(h, name)
			}
		}
	}
	for _, name := range hopHeaders {
		delete(h, name)
	}
}
