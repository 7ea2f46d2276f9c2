package filters

import (
	"crypto/sha256"
	"fmt"
	"net/http"
	"strings"

	apikeyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/api_key_auth/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/lambdamesh/lambdamesh/meshconfig/proxy/request"
	"github.com/lambdamesh/lambdamesh/meshconfig/proxy/strict"
)

// apiKeys is a compiled ApiKeyAuth or ApiKeyAuthPerRoute. The filter itself has
// none: routes say whose keys are taken.
type apiKeys struct {
	// clients by the hash of their key: how long a look takes tells nothing of it.
	clients map[[sha256.Size]byte]string
	header  string
	query   string
	forward string // header that tells the client's name; "": none
	hide    bool
}

func apiKeyKind() kind {
	return kind{
		config: "envoy.extensions.filters.http.api_key_auth.v3.ApiKeyAuth",
		compile: func(at string, config *anypb.Any) (Filter, error) {
			var c apikeyv3.ApiKeyAuth
			if err := strict.Unmarshal(at, config, &c); err != nil {
				return nil, err
			}
			return apiKeyFilter{}, strict.Allow(at, &c) // all of it is a route's to say
		},

		override: "envoy.extensions.filters.http.api_key_auth.v3.ApiKeyAuthPerRoute",
		compileOverride: func(at string, config *anypb.Any) (Override, error) {
			var c apikeyv3.ApiKeyAuthPerRoute
			if err := strict.Unmarshal(at, config, &c); err != nil {
				return Override{}, err
			}
			keys, err := compileAPIKeys(at, &c)
			return Override{Config: keys}, err
		},
	}
}

func compileAPIKeys(at string, c *apikeyv3.ApiKeyAuthPerRoute) (*apiKeys, error) {
	if err := strict.Allow(at, c, "credentials", "key_sources", "forwarding"); err != nil {
		return nil, err
	}
	if len(c.GetKeySources()) != 1 || len(c.GetCredentials()) == 0 {
		return nil, fmt.Errorf("%s: one of key_sources and credentials of somebody are required", at)
	}
	source := c.GetKeySources()[0]
	if err := strict.Allow(at+".key_sources[0]", source, "header", "query"); err != nil {
		return nil, err
	}
	k := &apiKeys{clients: make(map[[sha256.Size]byte]string, len(c.GetCredentials())), query: source.GetQuery(), hide: c.GetForwarding().GetHideCredentials()}
	if source.GetHeader() != "" {
		k.header = request.Canonical(source.GetHeader())
	}
	if (k.header == "") == (k.query == "") {
		return nil, fmt.Errorf("%s.key_sources[0]: exactly one of header and query is supported", at)
	}
	if name := c.GetForwarding().GetHeader(); name != "" {
		k.forward = request.Canonical(name)
	}
	for i, one := range c.GetCredentials() {
		sum := sha256.Sum256([]byte(one.GetKey()))
		if _, double := k.clients[sum]; double || one.GetKey() == "" {
			return nil, fmt.Errorf("%s.credentials[%d]: the key is empty or another client's, too", at, i)
		}
		k.clients[sum] = one.GetClient()
	}
	return k, nil
}

type apiKeyFilter struct{}

// Decode implements Filter.
func (apiKeyFilter) Decode(req *request.Request, answer Answerer, override any) bool {
	k, ok := override.(*apiKeys)
	if !ok {
		return true
	}
	key, given := k.extract(req)
	client, known := k.clients[sha256.Sum256([]byte(key))]
	if given != 1 || !known {
		details := "invalid_api_key"
		if given == 0 {
			details = "missing_api_key"
		}
		answer.Reply(http.StatusUnauthorized, details, "Client authentication failed.", func(h http.Header) {
			h.Set("Www-Authenticate", "ApiKey")
		})
		return false
	}
	if k.forward != "" {
		req.HTTP.Header[k.forward] = []string{client}
	}
	if k.hide && k.header != "" {
		delete(req.HTTP.Header, k.header)
	} else if k.hide {
		req.Query = dropQuery(req.Query, k.query)
	}
	return true
}

// extract finds the key and how many times one is given.
func (k *apiKeys) extract(req *request.Request) (key string, given int) {
	if k.query != "" {
		key, _ = request.QueryValue(req.Query, k.query)
		return key, countQuery(req.Query, k.query)
	}
	values := req.HTTP.Header[k.header]
	if len(values) == 0 {
		return "", 0
	}
	key = values[0]
	if k.header == "Authorization" { // as Envoy reads it
		scheme, rest, found := strings.Cut(key, " ")
		if !found || !strings.EqualFold(scheme, "Bearer") {
			return "", 0
		}
		key = rest
	}
	return key, len(values)
}
