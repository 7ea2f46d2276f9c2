package httpserver

import (
	"net/http"
	"strings"

	"github.com/lambdamesh/lambdamesh/pkg/apis/headers"
)

// ClientIdentity returns the SPIFFE ID of the caller from the last element of
// [headers.ClientCert], the one that the nearest proxy has added. It is false
// when there is none, or not exactly one (an X.509-SVID has one URI), or the
// header is malformed.
//
// Anybody can send this header. Use it only on a listener that nothing but the
// sidecar can reach.
func ClientIdentity(r *http.Request) (spiffeID string, ok bool) {
	element, ok := lastElement(strings.Join(r.Header.Values(headers.ClientCert), ","))
	if !ok {
		return "", false
	}
	uris := 0
	for _, pair := range element {
		if !strings.EqualFold(pair.key, "URI") {
			continue
		}
		spiffeID = pair.value
		uris++
	}
	return spiffeID, uris == 1 && strings.HasPrefix(spiffeID, "spiffe://")
}

// Workload takes the namespace and the service account out of a SPIFFE ID of
// the trust domain, as Istio writes them:
// spiffe://<trust domain>/ns/<namespace>/sa/<service account>.
func Workload(trustDomain, spiffeID string) (namespace, serviceAccount string, ok bool) {
	path, found := strings.CutPrefix(spiffeID, "spiffe://"+trustDomain+"/ns/")
	if !found {
		return "", "", false
	}
	namespace, serviceAccount, found = strings.Cut(path, "/sa/")
	if !found || namespace == "" || serviceAccount == "" || strings.Contains(namespace, "/") || strings.Contains(serviceAccount, "/") {
		return "", "", false
	}
	return namespace, serviceAccount, true
}

type pair struct{ key, value string }

// lastElement parses Envoy's list: elements separated by commas, pairs by
// semicolons; a value with one of , ; = in it is quoted, and a quote in it
// escaped by a backslash. It is false when anything is not in that form: half
// understood is not understood.
func lastElement(header string) (element []pair, ok bool) {
	rest := header
	for {
		key, after, found := strings.Cut(rest, "=")
		if !found || key == "" || strings.ContainsAny(key, `,;"`) {
			return nil, false
		}
		value, after, ok := cutValue(after)
		if !ok {
			return nil, false
		}
		element = append(element, pair{key: strings.TrimSpace(key), value: value})
		if after == "" {
			return element, true
		}
		if after[0] == ',' {
			element = nil
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
		return s[:end], s[end:], !strings.ContainsRune(s[:end], '"')
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
