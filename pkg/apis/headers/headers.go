package headers

import "strings"

// The identity headers, in lower case.
const (
	// ClientCert is Envoy's X-Forwarded-Client-Cert. Its last element is the
	// caller's certificate, added by the sidecar on the other end of mutual TLS
	// (SANITIZE_SET here, APPEND_FORWARD under Istio); elements before it are
	// hearsay. Believe it only on a listener that nothing but the sidecar can
	// reach.
	ClientCert = "x-forwarded-client-cert"
	// Rule is the id of the rule that a request is under, set by the gateway; the
	// sidecar's policy reads it.
	Rule = "x-lambdamesh-rule"
	// Token carries the bearer token of a jwt rule from the gateway to the
	// sidecar's RequestAuthentication under Istio, and ends there.
	Token = "x-lambdamesh-token"
	// Claims is the payload of the token that let a request in, a JSON object as
	// base64url without padding (RFC 7515, section 2). Whoever verifies the token
	// sets it: the gateway, or under Istio the lambda's sidecar. There is none
	// without a token rule. Believe it only from the gateway (see [ClientCert]):
	// a sidecar cannot remove the copies of other callers in every mesh.
	Claims = "x-lambdamesh-claims"
	// APIClient is the name of the client whose API key let a request in.
	APIClient = "x-api-client"
)

// DedupWindow asks the event bus to know the ids of a request's events for longer
// than those of others, a duration such as 168h. It is the connector's to ask; of
// others it means nothing.
const DedupWindow = "Lambdamesh-Dedup-Window"

// MeshPrefix begins the names of all headers that the mesh keeps for itself.
const MeshPrefix = "x-lambdamesh-"

// FromGateway lists the headers that the gateway alone may set: it removes the
// client's copies before it looks at a request, and sidecars those of callers
// that are no gateway.
func FromGateway() []string { return []string{APIClient, Claims, Rule, Token} }

// Identity reports whether a header, in any case, says who calls or what they
// may do. Some servers take '_' for '-' (RFC 3875, section 4.1.18), and so does
// this.
func Identity(name string) bool {
	// Asked of every header of every request: nothing is copied for most.
	if strings.Contains(name, "_") {
		name = strings.ReplaceAll(name, "_", "-")
	}
	return strings.EqualFold(name, ClientCert) || strings.EqualFold(name, APIClient) || HasPrefix(name, MeshPrefix)
}

// HasPrefix reports whether a header's name, in any case, begins with prefix.
func HasPrefix(name, prefix string) bool {
	return len(name) >= len(prefix) && strings.EqualFold(name[:len(prefix)], prefix)
}

// OfProxy reports whether a header, in lower case, tells a proxy what to do, or
// is how proxies tell each other where a request comes from: a rule may not edit
// it, and a client's copies of the first kind ([Steering]) mean nothing.
func OfProxy(name string) bool {
	return name == "forwarded" || strings.HasPrefix(name, "x-forwarded-") || strings.HasPrefix(name, steeringPrefix)
}

// OfConnection reports whether a header, in lower case, frames a message or
// belongs to one connection (RFC 9110, section 7.6.1): nobody but the proxy
// writes it.
func OfConnection(name string) bool {
	switch name {
	case "host", "connection", "content-length", "transfer-encoding", "te", "upgrade", "keep-alive", "trailer":
		return true
	}
	return false
}

// EndToEnd reports whether a header, in lower case, decides about a request or
// tells who asks, so that a client cannot have it removed by naming it in
// Connection.
func EndToEnd(name string) bool {
	switch name {
	case "authorization", "cookie", "host", "content-length", "content-type", "origin", "traceparent", "tracestate", "x-request-id":
		return true
	}
	return Identity(name) || name == "forwarded" || strings.HasPrefix(name, "x-forwarded-")
}

const steeringPrefix = "x-envoy-"

// Steering lists the headers by which a client could change what Envoy does with
// its request: timeouts, retries, names in statistics.
func Steering() []string {
	return []string{
		steeringPrefix + "decorator-operation",
		steeringPrefix + "expected-rq-timeout-ms",
		steeringPrefix + "hedge-on-per-try-timeout",
		steeringPrefix + "ip-tags",
		steeringPrefix + "max-retries",
		steeringPrefix + "original-path",
		steeringPrefix + "retriable-header-names",
		steeringPrefix + "retriable-status-codes",
		steeringPrefix + "retry-grpc-on",
		steeringPrefix + "retry-on",
		steeringPrefix + "upstream-alt-stat-name",
		steeringPrefix + "upstream-rq-per-try-timeout-ms",
		steeringPrefix + "upstream-rq-timeout-alt-response",
		steeringPrefix + "upstream-rq-timeout-ms",
		steeringPrefix + "upstream-stream-duration-ms",
	}
}
