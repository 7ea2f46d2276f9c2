package filters

import (
	"net/http"
	"testing"

	apikeyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/api_key_auth/v3"
	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/meshconfig/proxy/request"
)

func keysOf(t *testing.T, change ...func(*apikeyv3.ApiKeyAuthPerRoute)) (*apiKeys, error) {
	t.Helper()
	c := &apikeyv3.ApiKeyAuthPerRoute{
		Credentials: []*apikeyv3.Credential{{Key: "secret-of-a", Client: "a"}, {Key: "secret-of-b", Client: "b"}},
		KeySources:  []*apikeyv3.KeySource{{Header: "x-key"}},
		Forwarding:  &apikeyv3.Forwarding{Header: "x-client", HideCredentials: true},
	}
	for _, f := range change {
		f(c)
	}
	return compileAPIKeys("here", c)
}

func TestAPIKeysAreTakenFromTheirPlaceAndGivenOnce(t *testing.T) {
	inQuery := func(c *apikeyv3.ApiKeyAuthPerRoute) { c.KeySources = []*apikeyv3.KeySource{{Query: "key"}} }
	inAuthorization := func(c *apikeyv3.ApiKeyAuthPerRoute) { c.KeySources = []*apikeyv3.KeySource{{Header: "authorization"}} }
	none := func(*apikeyv3.ApiKeyAuthPerRoute) {}
	for name, tt := range map[string]struct {
		place  func(*apikeyv3.ApiKeyAuthPerRoute)
		header http.Header
		query  string
		key    string
		given  int
	}{
		"a header":                {none, http.Header{"X-Key": {"k"}}, "", "k", 1},
		"none":                    {none, http.Header{}, "x-key=k", "", 0},
		"two headers":             {none, http.Header{"X-Key": {"k", "l"}}, "", "k", 2},
		"a parameter":             {inQuery, http.Header{"Key": {"l"}}, "a=b&key=k%21", "k!", 1},
		"two parameters":          {inQuery, nil, "key=k&%6bey=l", "k", 2},
		"a bearer's":              {inAuthorization, http.Header{"Authorization": {"bearer k"}}, "", "k", 1},
		"authorization of a kind": {inAuthorization, http.Header{"Authorization": {"Basic k"}}, "", "", 0},
	} {
		t.Run(name, func(t *testing.T) {
			keys, err := keysOf(t, tt.place)
			require.NoError(t, err)
			key, given := keys.extract(&request.Request{HTTP: &http.Request{Header: tt.header}, Query: tt.query})
			require.Equal(t, tt.key, key)
			require.Equal(t, tt.given, given)
		})
	}
}

func TestAPIKeysThatAreNotClearAreRefused(t *testing.T) {
	for name, change := range map[string]func(*apikeyv3.ApiKeyAuthPerRoute){
		"nobody has one":        func(c *apikeyv3.ApiKeyAuthPerRoute) { c.Credentials = nil },
		"no place":              func(c *apikeyv3.ApiKeyAuthPerRoute) { c.KeySources = nil },
		"two places":            func(c *apikeyv3.ApiKeyAuthPerRoute) { c.KeySources[0].Query = "key" },
		"a cookie":              func(c *apikeyv3.ApiKeyAuthPerRoute) { c.KeySources[0].Cookie = "key" },
		"two clients' key":      func(c *apikeyv3.ApiKeyAuthPerRoute) { c.Credentials[1].Key = "secret-of-a" },
		"an empty key":          func(c *apikeyv3.ApiKeyAuthPerRoute) { c.Credentials[1].Key = "" },
		"some of these clients": func(c *apikeyv3.ApiKeyAuthPerRoute) { c.AllowedClients = []string{"a"} },
	} {
		t.Run(name, func(t *testing.T) {
			_, err := keysOf(t, change)
			require.ErrorContains(t, err, "here")
		})
	}
}
