package place

import (
	"maps"
	"mime"
	"net/http"

	"github.com/lambdamesh/lambdamesh/pkg/apis/headers"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// AsTheMesh says of a developer's own request who makes it, as a sidecar does of
// others': a CloudEvent comes from the event bus, anything else from the gateway.
// It is for servers that nobody but the developer reaches.
func AsTheMesh(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		maps.DeleteFunc(r.Header, func(name string, _ []string) bool { return headers.Identity(name) })
		account := v1alpha1.ServiceAccountGateway
		if isEvent(r.Header) {
			account = v1alpha1.ServiceAccountEventBus
		}
		r.Header.Set(headers.ClientCert, "URI="+v1alpha1.SPIFFEID(v1alpha1.DefaultTrustDomain, v1alpha1.SystemNamespace, account))
		next.ServeHTTP(w, r)
	})
}

// isEvent tells whether a request carries a CloudEvent (CloudEvents HTTP binding
// 1.0.2, sections 3.1 and 3.2) or an event with KYMA-* headers.
func isEvent(header http.Header) bool {
	if header.Get("Ce-Specversion") != "" || header.Get("Kyma-Event-Type") != "" {
		return true
	}
	media, _, err := mime.ParseMediaType(header.Get("Content-Type"))
	return err == nil && media == "application/cloudevents+json"
}
