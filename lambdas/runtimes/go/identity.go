package lambda

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strings"
)

// Headers by which the mesh tells who calls; pkg/apis/headers holds the contract.
const (
	headerClientCert = "X-Forwarded-Client-Cert"
	headerClaims     = "X-Lambdamesh-Claims"
	headerAPIClient  = "X-Api-Client"
	meshPrefix       = "X-Lambdamesh-" // of headers that are the mesh's own
)

// CallerKind tells what kind of workload calls.
type CallerKind string

// The kinds of callers.
const (
	// CallerGateway: the request came in from outside, under an APIRule.
	CallerGateway CallerKind = "gateway"
	// CallerEventBus: the call is an event.
	CallerEventBus CallerKind = "eventbus"
	// CallerConnector: the connector calls.
	CallerConnector CallerKind = "connector"
	// CallerLambda: a workload of a tenant. Every lambda runs as the service
	// account of its name; whether an account is a lambda's, its namespace knows.
	CallerLambda CallerKind = "lambda"
	// CallerOther: anybody else, and everybody whom no sidecar vouches for.
	CallerOther CallerKind = "other"
)

// Caller is who calls, as the mesh's certificates prove it. No header of a
// client can change it. Namespace, Name and Identity are empty when nothing is
// proven.
type Caller struct {
	Kind CallerKind `json:"kind"`
	// Namespace and Name of the caller's service account.
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	// Identity is the SPIFFE ID in the caller's certificate.
	Identity string `json:"identity"`
}

// identities tell one caller from another; see the variables they come from.
type identities struct {
	// sidecar: one stands before the listener, so that the headers are true.
	sidecar                      bool
	trustDomain, systemNamespace string
	gateways                     []string // namespace/name
}

// caller finds out who calls. The zero identities know nobody.
func (i identities) caller(header http.Header) Caller {
	unknown := Caller{Kind: CallerOther}
	if !i.sidecar {
		return unknown
	}
	identity, ok := clientIdentity(header.Values(headerClientCert))
	if !ok {
		return unknown
	}
	namespace, name, ok := workload(i.trustDomain, identity)
	if !ok {
		return Caller{Kind: CallerOther, Identity: identity}
	}
	return Caller{Kind: i.kind(namespace, name), Namespace: namespace, Name: name, Identity: identity}
}

func (i identities) kind(namespace, name string) CallerKind {
	for _, gateway := range i.gateways {
		if gateway == namespace+"/"+name {
			return CallerGateway
		}
	}
	switch {
	case namespace != i.systemNamespace:
		return CallerLambda
	case name == "eventbus":
		return CallerEventBus
	case name == "connector":
		return CallerConnector
	}
	return CallerOther
}

// claims are those of the token that let the request in; only the gateway knows
// them.
func claimsOf(caller Caller, header http.Header) map[string]any {
	values := header.Values(headerClaims)
	if caller.Kind != CallerGateway || len(values) != 1 {
		return nil
	}
	payload, err := base64.RawURLEncoding.Strict().DecodeString(values[0])
	if err != nil {
		return nil
	}
	var claims map[string]any
	if json.Unmarshal(payload, &claims) != nil {
		return nil
	}
	return claims
}

// hideIdentity removes what is meant for the runtime and not for a handler,
// which would take for proven what is not, or pass a token on. The name of an API
// key's client is the gateway's to tell.
func hideIdentity(caller Caller, header http.Header) {
	for name := range header {
		if strings.HasPrefix(name, meshPrefix) || name == headerClientCert || name == headerAPIClient && caller.Kind != CallerGateway {
			delete(header, name)
		}
	}
}

// workload takes a SPIFFE ID apart: spiffe://<trust domain>/ns/<namespace>/sa/<service account>.
func workload(trustDomain, identity string) (namespace, name string, ok bool) {
	path, found := strings.CutPrefix(identity, "spiffe://"+trustDomain+"/ns/")
	if !found {
		return "", "", false
	}
	namespace, name, found = strings.Cut(path, "/sa/")
	if !found || namespace == "" || name == "" || strings.Contains(namespace, "/") || strings.Contains(name, "/") {
		return "", "", false
	}
	return namespace, name, true
}

// clientIdentity returns the SPIFFE ID in the last element of
// X-Forwarded-Client-Cert, the one that the nearest proxy has added. It is false
// when there is none, or not exactly one, or the header is malformed.
func clientIdentity(values []string) (string, bool) {
	rest, identity, uris := strings.Join(values, ","), "", 0
	for {
		key, after, found := strings.Cut(rest, "=")
		if !found || key == "" || strings.ContainsAny(key, `,;"`) {
			return "", false
		}
		value, after, ok := cutValue(after)
		if !ok {
			return "", false
		}
		if strings.EqualFold(strings.Trim(key, " \t"), "URI") {
			identity = value
			uris++
		}
		if after == "" {
			return identity, uris == 1 && strings.HasPrefix(identity, "spiffe://")
		}
		if after[0] == ',' {
			identity, uris = "", 0
		}
		rest = after[1:]
	}
}

// cutValue returns the value at the beginning of s, unquoted, and what follows
// it, which is empty or begins with a separator.
func cutValue(s string) (value, rest string, ok bool) {
	if !strings.HasPrefix(s, `"`) {
		end := strings.IndexAny(s, ",;")
		if end < 0 {
			end = len(s)
		}
		return s[:end], s[end:], !strings.Contains(s[:end], `"`)
	}
	var unquoted strings.Builder
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
			if i == len(s) {
				return "", "", false
			}
			unquoted.WriteByte(s[i])
		case '"':
			rest = s[i+1:]
			return unquoted.String(), rest, rest == "" || rest[0] == ',' || rest[0] == ';'
		default:
			unquoted.WriteByte(s[i])
		}
	}
	return "", "", false
}
