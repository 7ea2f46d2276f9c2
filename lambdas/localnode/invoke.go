package localnode

import (
	"context"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"

	"k8s.io/apimachinery/pkg/types"

	"github.com/lambdamesh/lambdamesh/lambdas/place"
	"github.com/lambdamesh/lambdamesh/pkg/httpserver"
)

// ServeHTTP calls /<namespace>/<lambda>/<path> for the developer whose machine
// this is, past rules and subscriptions: serve it where nobody else gets. A
// CloudEvent is delivered as by the event bus, anything else as by the gateway.
func (n *Node) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	place.AsTheMesh(http.HandlerFunc(n.invoke)).ServeHTTP(w, r)
}

func (n *Node) invoke(w http.ResponseWriter, r *http.Request) {
	parts := strings.SplitN(r.URL.EscapedPath(), "/", 4)
	if len(parts) < 4 || parts[0] != "" {
		httpserver.Problem(w, http.StatusNotFound, "", "want /<namespace>/<lambda>/<path>")
		return
	}
	key := types.NamespacedName{Namespace: parts[1], Name: parts[2]}
	path, err := url.PathUnescape("/" + parts[3])
	if err != nil {
		httpserver.Problem(w, http.StatusBadRequest, "", "the path is not escaped")
		return
	}
	n.mu.Lock()
	workload := n.workloads[key]
	n.mu.Unlock()
	if workload == nil {
		httpserver.Problem(w, http.StatusNotFound, "", "there is no lambda "+key.String()+" here; see `lambdamesh status -A`")
		return
	}
	socket := workload.socket()
	if socket == "" {
		w.Header().Set("Retry-After", "1")
		httpserver.Problem(w, http.StatusServiceUnavailable, "", "no replica of lambda "+key.String()+" is ready; see `lambdamesh status`")
		return
	}
	transport := &http.Transport{DisableKeepAlives: true, DisableCompression: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}
	(&httputil.ReverseProxy{Transport: transport, FlushInterval: -1, Rewrite: func(p *httputil.ProxyRequest) {
		p.Out.URL.Scheme, p.Out.URL.Host, p.Out.Host = "http", "lambda", key.Name+"."+key.Namespace+".svc"
		p.Out.URL.Path, p.Out.URL.RawPath = path, "/"+parts[3]
	}}).ServeHTTP(w, r)
}
