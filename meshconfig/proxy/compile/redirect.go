package compile

import (
	"fmt"
	"net/http"
	"regexp"
	"strconv"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"github.com/lambdamesh/lambdamesh/meshconfig/proxy/request"
	"github.com/lambdamesh/lambdamesh/meshconfig/proxy/strict"
)

// redirect is a compiled RedirectAction.
type redirect struct {
	scheme        string
	host          string
	port          uint32
	path          string
	prefixRewrite string
	matchedPrefix string
	regexRewrite  *regexp.Regexp
	substitution  string
	Code          int
	stripQuery    bool
}

func compileRedirect(at string, a *routev3.RedirectAction, match *routev3.RouteMatch) (*redirect, error) {
	if err := strict.Allow(at, a, "https_redirect", "scheme_redirect", "host_redirect", "port_redirect", "path_redirect",
		"prefix_rewrite", "regex_rewrite", "response_code", "strip_query"); err != nil {
		return nil, err
	}
	r := &redirect{
		scheme: a.GetSchemeRedirect(), host: a.GetHostRedirect(), port: a.GetPortRedirect(), path: a.GetPathRedirect(),
		prefixRewrite: a.GetPrefixRewrite(), stripQuery: a.GetStripQuery(),
	}
	if a.GetHttpsRedirect() {
		r.scheme = "https"
	}
	switch p := match.GetPathSpecifier().(type) {
	case *routev3.RouteMatch_Prefix:
		r.matchedPrefix = p.Prefix
	case *routev3.RouteMatch_PathSeparatedPrefix:
		r.matchedPrefix = p.PathSeparatedPrefix
	case *routev3.RouteMatch_Path:
		r.matchedPrefix = p.Path
	}
	if a.GetRegexRewrite() != nil {
		var err error
		if r.regexRewrite, r.substitution, err = compileRewrite(at+".regex_rewrite", a.GetRegexRewrite()); err != nil {
			return nil, err
		}
	}
	codes := map[routev3.RedirectAction_RedirectResponseCode]int{
		routev3.RedirectAction_MOVED_PERMANENTLY:  http.StatusMovedPermanently,
		routev3.RedirectAction_FOUND:              http.StatusFound,
		routev3.RedirectAction_SEE_OTHER:          http.StatusSeeOther,
		routev3.RedirectAction_TEMPORARY_REDIRECT: http.StatusTemporaryRedirect,
		routev3.RedirectAction_PERMANENT_REDIRECT: http.StatusPermanentRedirect,
	}
	var ok bool
	if r.Code, ok = codes[a.GetResponseCode()]; !ok {
		return nil, fmt.Errorf("%s: response_code %s is not supported", at, a.GetResponseCode())
	}
	return r, nil
}

// Location is where the request is sent to.
func (r *redirect) Location(req *request.Request) string {
	scheme := r.scheme
	if scheme == "" {
		scheme = req.Scheme
	}
	host, port, _ := strings.Cut(req.Host, ":")
	if strings.HasPrefix(req.Host, "[") {
		i := strings.LastIndexByte(req.Host, ']') + 1
		host, port = req.Host[:i], strings.TrimPrefix(req.Host[i:], ":")
	}
	if r.host != "" {
		host = r.host
	}
	// A port that was the old scheme's default goes with the scheme.
	if r.scheme != "" && r.scheme != req.Scheme && (port == "80" || port == "443") {
		port = ""
	}
	if r.port != 0 {
		port = strconv.FormatUint(uint64(r.port), 10)
	}
	if port != "" && !(r.port != 0 && (scheme == "http" && port == "80" || scheme == "https" && port == "443")) {
		host += ":" + port
	}
	path, query := req.Path, req.Query
	switch {
	case r.path != "":
		path = r.path
		if p, q, ok := strings.Cut(r.path, "?"); ok {
			path, query = p, q
		}
	case r.prefixRewrite != "":
		path = r.prefixRewrite + path[min(len(r.matchedPrefix), len(path)):]
	case r.regexRewrite != nil:
		path = r.regexRewrite.ReplaceAllString(path, r.substitution)
	}
	if query != "" && !r.stripQuery {
		path += "?" + query
	}
	return scheme + "://" + host + path
}
