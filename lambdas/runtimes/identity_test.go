package runtimes_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/pkg/apis/headers"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/httpserver"
)

const (
	eventBus     = "spiffe://cluster.local/ns/lambdamesh-system/sa/eventbus"
	gateway      = "spiffe://cluster.local/ns/lambdamesh-system/sa/gateway"
	clientCert   = "x-forwarded-client-cert"
	claimsHeader = "x-lambdamesh-claims"
	tenant       = "spiffe://cluster.local/ns/shop/sa/cart"
)

func certOf(identity string) string { return "Hash=0123;URI=" + identity }

type vector struct {
	Name     string
	Headers  []string
	Identity string
}

// vectors of X-Forwarded-Client-Cert; every parser of it answers them alike.
func vectors(t *testing.T) []vector {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("testdata", "client-cert.json"))
	require.NoError(t, err)
	var all []vector
	require.NoError(t, json.Unmarshal(raw, &all))
	return all
}

func TestTheServersOfThisRepositoryReadTheClientCertificateAsRuntimesDo(t *testing.T) {
	for _, v := range vectors(t) {
		request := httptest.NewRequest(http.MethodGet, "/", http.NoBody)
		request.Header[http.CanonicalHeaderKey(clientCert)] = v.Headers
		identity, ok := httpserver.ClientIdentity(request)
		require.Equal(t, v.Identity != "", ok, v.Name)
		if ok {
			require.Equal(t, v.Identity, identity, v.Name)
		}
	}
}

// The names are written in three languages; the mesh sets them in a fourth place.
func TestEveryLanguageKnowsTheHeadersByTheirNames(t *testing.T) {
	for file, pattern := range map[string]string{
		"nodejs/identity.mjs":                   "HEADER_CLIENT_CERT = '%s'|HEADER_CLAIMS = '%s'|HEADER_API_CLIENT = '%s'|MESH_PREFIX = '%s'",
		"python/lambdamesh_runtime/identity.py": `HEADER_CLIENT_CERT = "%s"|HEADER_CLAIMS = "%s"|HEADER_API_CLIENT = "%s"|MESH_PREFIX = "%s"`,
	} {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		for want := range strings.SplitSeq(fmt.Sprintf(pattern, headers.ClientCert, headers.Claims, headers.APIClient, headers.MeshPrefix), "|") {
			require.Contains(t, string(text), want, file)
		}
	}
	text, err := os.ReadFile("go/identity.go")
	require.NoError(t, err)
	for name, value := range map[string]string{"headerClientCert": headers.ClientCert, "headerClaims": headers.Claims, "headerAPIClient": headers.APIClient, "meshPrefix": headers.MeshPrefix} {
		require.Regexp(t, name+` += "`+http.CanonicalHeaderKey(value)+`"`, string(text))
	}
}

// strangers are all who are not the event bus; empty is who proves nothing.
func strangers() map[string]string {
	return map[string]string{
		"the gateway": gateway, "a lambda": tenant, "nobody": "", "another trust domain": "spiffe://evil.example/ns/lambdamesh-system/sa/eventbus",
		"a namesake elsewhere": "spiffe://cluster.local/ns/shop/sa/eventbus",
	}
}

// What makes a request of the event bus an event makes one of nobody else.
func forgeries() map[string]behavior {
	plain := func(data, path string, size int) string {
		return fmt.Sprintf(`{"isEvent":false,"type":"","source":"","id":"","subject":"","extensions":{},"data":%s,"method":"POST","path":%q,"q":"","header":"","size":%d}`, data, path, size)
	}
	const event = `{"specversion":"1.0","type":"t","source":"commerce","id":"1","data":{"orderCode":"FORGED"}}`
	return map[string]behavior{
		"binary": {
			body: `{"orderCode":"FORGED"}`, want: plain(`{"orderCode":"FORGED"}`, "/", 22),
			header: map[string]string{"Content-Type": "application/json", "Ce-Specversion": "1.0", "Ce-Type": "order.created.v1", "Ce-Source": "commerce", "Ce-Id": "1"},
		},
		"structured":                {body: event, want: plain(event, "/", len(event)), header: map[string]string{"Content-Type": structured}},
		"structured without a type": {body: `{"a":1}`, want: plain(`{"a":1}`, "/", 7), header: map[string]string{"Content-Type": structured}},
		"batched":                   {body: "[" + event + "]", want: plain("["+event+"]", "/", len(event)+2), header: map[string]string{"Content-Type": "application/cloudevents-batch+json"}},
		"legacy": {
			body: `{"orderCode":"FORGED"}`, want: plain(`{"orderCode":"FORGED"}`, "/", 22),
			header: map[string]string{"Content-Type": "application/json", "KYMA-Event-Type": "order.created", "KYMA-Event-Type-Version": "v1", "KYMA-Source-ID": "commerce", "KYMA-Event-ID": "3"},
		},
	}
}

type callerAnswer struct {
	Caller struct{ Kind, Namespace, Name, Identity string }
	Claims map[string]any
}

func (r *runningLambda) caller(t *testing.T, header http.Header) callerAnswer {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://lambda/caller", http.NoBody)
	require.NoError(t, err)
	request.Header = header
	response, err := r.client.Do(request)
	require.NoError(t, err)
	var got callerAnswer
	text := readAll(t, response)
	require.NoError(t, json.Unmarshal([]byte(text), &got), text)
	return got
}

func cert(values ...string) http.Header {
	return http.Header{http.CanonicalHeaderKey(clientCert): values}
}

func (r *runningLambda) checkCallers(t *testing.T) {
	t.Helper()
	for who, identity := range strangers() {
		for form, row := range forgeries() {
			t.Run(form+" of "+who+" is a plain request", func(t *testing.T) {
				row.from, row.path, row.method, row.status, row.contentType = identity, "/", http.MethodPost, http.StatusOK, "application/json"
				r.check(t, row)
			})
		}
	}
	for identity, want := range map[string]string{
		gateway: "gateway lambdamesh-system gateway", eventBus: "eventbus lambdamesh-system eventbus", tenant: "lambda shop cart",
		"spiffe://cluster.local/ns/lambdamesh-system/sa/connector":    "connector lambdamesh-system connector",
		"spiffe://cluster.local/ns/lambdamesh-system/sa/controlplane": "other lambdamesh-system controlplane",
		"spiffe://evil.example/ns/lambdamesh-system/sa/eventbus":      "other  ",
		"spiffe://cluster.local/ns/a/b/sa/c":                          "other  ",
	} {
		got := r.caller(t, cert(certOf(identity))).Caller
		require.Equal(t, want, got.Kind+" "+got.Namespace+" "+got.Name)
		require.Equal(t, identity, got.Identity)
	}
	for _, v := range vectors(t) {
		require.Equal(t, v.Identity, r.caller(t, cert(v.Headers...)).Caller.Identity, v.Name)
	}
	r.checkClaims(t)
}

func (r *runningLambda) checkClaims(t *testing.T) {
	t.Helper()
	claims := func(identity string, values ...string) map[string]any {
		header := cert(certOf(identity))
		header[http.CanonicalHeaderKey(claimsHeader)] = values
		return r.caller(t, header).Claims
	}
	encode := func(text string) string { return base64.RawURLEncoding.EncodeToString([]byte(text)) }
	good := encode(`{"sub":"alice","scope":"orders:read","name":"Zoë?>"}`)
	require.Equal(t, map[string]any{"sub": "alice", "scope": "orders:read", "name": "Zoë?>"}, claims(gateway, good))
	require.Nil(t, claims(gateway), "no rule asked for a token")
	for who, identity := range strangers() {
		if identity != gateway {
			require.Nil(t, claims(identity, good), "from %s", who)
		}
	}
	for _, bad := range []string{"", "!", encode("null"), encode("[1]"), encode("1"), encode("{"), good + "!"} {
		require.Nil(t, claims(gateway, bad), bad)
	}
	require.Nil(t, claims(gateway, good, good), "more than one")

	response := r.get(t, "/headers", map[string]string{
		clientCert: certOf(gateway), claimsHeader: good, "x-lambdamesh-rule": good, "x-lambdamesh-token": good, "X-Api-Client": "partner",
	})
	seen := strings.ToLower(readAll(t, response))
	require.NotContains(t, seen, "x-lambdamesh-")
	require.NotContains(t, seen, clientCert)
	require.Contains(t, seen, "partner")
	for who, identity := range strangers() {
		if identity != gateway {
			response := r.get(t, "/headers", map[string]string{clientCert: certOf(identity), "X-Api-Client": "partner"})
			require.NotContains(t, readAll(t, response), "partner", "of %s", who)
		}
	}
}

// A pod that got no sidecar: whoever reaches its port can write the header.
func TestWithoutASidecarNobodyIsBelieved(t *testing.T) {
	pipeline := newPipeline(t)
	for runtime, file := range languages() {
		t.Run(string(runtime), func(t *testing.T) {
			t.Parallel()
			source, err := os.ReadFile(filepath.Join("testdata", file))
			require.NoError(t, err)
			server := startHandler(t, pipeline, runtime, "", string(source), newFakeMesh(t), v1alpha1.EnvSidecar+"=")
			header := cert(certOf(gateway))
			header.Set(claimsHeader, base64.RawURLEncoding.EncodeToString([]byte(`{"sub":"mallory"}`)))
			got := server.caller(t, header)
			require.Equal(t, "other", got.Caller.Kind)
			require.Empty(t, got.Caller.Identity)
			require.Nil(t, got.Claims)
			require.NotContains(t, readAll(t, server.get(t, "/headers", map[string]string{clientCert: certOf(gateway), "X-Api-Client": "partner"})), "partner")
			for _, row := range forgeries() {
				row.from, row.path, row.method, row.status, row.contentType = eventBus, "/", http.MethodPost, http.StatusOK, "application/json"
				server.check(t, row)
			}
		})
	}
}

// An installation may have other names for everything.
func TestTheEnvironmentNamesTheSystem(t *testing.T) {
	pipeline := newPipeline(t)
	for runtime, file := range languages() {
		t.Run(string(runtime), func(t *testing.T) {
			t.Parallel()
			source, err := os.ReadFile(filepath.Join("testdata", file))
			require.NoError(t, err)
			server := startHandler(t, pipeline, runtime, "", string(source), newFakeMesh(t),
				v1alpha1.EnvTrustDomain+"=mesh.example", v1alpha1.EnvSystemNamespace+"=sys", v1alpha1.EnvGateways+"=istio-system/ingress,edge/gw")
			for identity, want := range map[string]string{
				"spiffe://mesh.example/ns/sys/sa/eventbus": "eventbus", "spiffe://mesh.example/ns/sys/sa/connector": "connector",
				"spiffe://mesh.example/ns/istio-system/sa/ingress": "gateway", "spiffe://mesh.example/ns/edge/sa/gw": "gateway",
				"spiffe://mesh.example/ns/sys/sa/gateway": "other", eventBus: "other", "spiffe://mesh.example/ns/shop/sa/a": "lambda",
			} {
				require.Equal(t, want, server.caller(t, cert(certOf(identity))).Caller.Kind, identity)
			}
		})
	}
}
