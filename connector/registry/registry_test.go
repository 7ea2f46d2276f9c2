package registry_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/connector/catalog"
	"github.com/lambdamesh/lambdamesh/connector/registry"
	"github.com/lambdamesh/lambdamesh/manifests"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/kube"
	"github.com/lambdamesh/lambdamesh/pkg/targets"
	"github.com/lambdamesh/lambdamesh/pkg/testkit"
)

// world is a registry on a real API server, asked as an application that is known.
type world struct {
	t       *testing.T
	client  client.Client
	handler *registry.Handler
	app     string
	logs    *bytes.Buffer
}

func newWorld(t *testing.T, change ...func(*registry.Config)) *world {
	t.Helper()
	rest := testkit.KubeAPI(t, manifests.CRDs)
	scheme, err := kube.Scheme()
	require.NoError(t, err)
	kept, err := cache.New(rest, cache.Options{Scheme: scheme, DefaultTransform: catalog.Slim()})
	require.NoError(t, err)
	require.NoError(t, catalog.Index(t.Context(), kept))
	for _, kind := range []client.Object{&v1alpha1.Application{}, &v1alpha1.ApplicationService{}} {
		_, err := kept.GetInformer(t.Context(), kind, cache.BlockUntilSynced(false))
		require.NoError(t, err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var running sync.WaitGroup
	running.Go(func() { _ = kept.Start(ctx) })
	t.Cleanup(func() { cancel(); running.Wait() })
	require.True(t, kept.WaitForCacheSync(ctx))

	w := &world{t: t, app: "app-" + testkit.Namespace(t, rest), logs: &bytes.Buffer{}}
	w.client, err = client.New(rest, client.Options{Scheme: scheme})
	require.NoError(t, err)
	err = w.client.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.SystemNamespace}})
	if !apierrors.IsAlreadyExists(err) {
		require.NoError(t, err)
	}
	w.application(w.app)
	policy, err := targets.New(targets.Config{Allow: []string{"127.0.0.1:8180"}})
	require.NoError(t, err)
	config := registry.Config{
		Objects: kept, Live: w.client, Client: w.client, Targets: policy, Log: slog.New(slog.NewTextHandler(w.logs, nil)),
	}
	for _, f := range change {
		f(&config)
	}
	w.handler = registry.New(config)
	testkit.Eventually(t, patience, func() error { return kept.Get(t.Context(), client.ObjectKey{Name: w.app}, &v1alpha1.Application{}) }, "the cache has the application")
	return w
}

const patience = 30e9 // thirty seconds

func (w *world) application(name string, services ...v1alpha1.InlineService) {
	w.t.Helper()
	app := &v1alpha1.Application{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.ApplicationSpec{Services: services}}
	require.NoError(w.t, w.client.Create(w.t.Context(), app))
	w.t.Cleanup(func() { _ = w.client.Delete(context.WithoutCancel(w.t.Context()), app) })
}

// as asks as an application. The path names another one: that does not count.
func (w *world) as(app, method, id, body string) *httptest.ResponseRecorder {
	w.t.Helper()
	r := httptest.NewRequestWithContext(w.t.Context(), method, "/somebody-else/v1/metadata/services/"+id, strings.NewReader(body))
	recorder := httptest.NewRecorder()
	if id == "" {
		w.handler.Services(recorder, r, app)
	} else {
		w.handler.Service(recorder, r, app, id)
	}
	return recorder
}

func (w *world) do(method, id, body string) *httptest.ResponseRecorder {
	w.t.Helper()
	return w.as(w.app, method, id, body)
}

// register returns the id of a service.
func (w *world) register(body string) string {
	w.t.Helper()
	answer := w.do(http.MethodPost, "", body)
	require.Equal(w.t, http.StatusOK, answer.Code, answer.Body.String())
	return w.json(answer)["id"].(string)
}

func (w *world) json(answer *httptest.ResponseRecorder) map[string]any {
	w.t.Helper()
	require.Equal(w.t, "application/json", answer.Header().Get("Content-Type"))
	var value map[string]any
	require.NoError(w.t, json.Unmarshal(answer.Body.Bytes(), &value), answer.Body.String())
	return value
}

// object is the service of an id.
func (w *world) object(id string) *v1alpha1.ApplicationService {
	w.t.Helper()
	var list v1alpha1.ApplicationServiceList
	require.NoError(w.t, w.client.List(w.t.Context(), &list, client.MatchingLabels{v1alpha1.LabelServiceID: id}))
	require.Len(w.t, list.Items, 1)
	return &list.Items[0]
}

func (w *world) secrets() []corev1.Secret {
	w.t.Helper()
	var list corev1.SecretList
	require.NoError(w.t, w.client.List(w.t.Context(), &list, client.InNamespace(v1alpha1.SystemNamespace), client.MatchingLabels{v1alpha1.LabelApplication: w.app}))
	return list.Items
}

const (
	openapi  = `{"openapi":"3.0.3","info":{"title":"Orders","version":"1"},"paths":{}}`
	asyncapi = `{"asyncapi":"2.0.0","channels":{"order.created.v1":{"subscribe":{"message":{"payload":{"type":"object"}}}}}}`
	edmx     = `<Edmx Version=\"4.0\"></Edmx>`
)

// body of a service with an API.
func body(api string) string {
	return `{"provider":"shop","name":"Orders API","description":"all orders","shortDescription":"orders","identifier":"o1","labels":{"a":"b"},
		"api":{"targetUrl":"https://shop.example.com/api"` + api + `},"events":{"spec":` + asyncapi + `}}`
}

func TestAServiceIsRegisteredReadChangedAndDeleted(t *testing.T) {
	w := newWorld(t)
	id := w.register(body(`,"spec":` + openapi + `,"credentials":{"oauth":{"url":"https://shop.example.com/token","clientId":"id-1","clientSecret":"s3cret",
		"csrfInfo":{"tokenEndpointURL":"https://shop.example.com/csrf"}}},"headers":{"x-key":["k3y"]},"requestParameters":{"queryParameters":{"tenant":["acme"]}}`))

	object := w.object(id)
	require.Equal(t, w.app+".orders-api", object.Name)
	require.Equal(t, "orders-api", object.Spec.Name)
	require.Equal(t, "Orders API", object.Spec.DisplayName)
	require.Equal(t, "https://shop.example.com/csrf", object.Spec.API.Auth.CSRF.TokenURL)
	require.Equal(t, w.app, object.OwnerReferences[0].Name)
	secrets := w.secrets()
	require.Len(t, secrets, 1)
	require.Equal(t, object.UID, secrets[0].OwnerReferences[0].UID, "it goes with the service")
	require.Equal(t, map[string]string{"clientId": "id-1", "clientSecret": "s3cret", "header.X-Key": "k3y", "query.tenant": "acme"}, texts(secrets[0].Data))

	answer := w.do(http.MethodGet, id, "")
	require.Equal(t, http.StatusOK, answer.Code)
	require.JSONEq(t, `{"provider":"shop","name":"Orders API","description":"all orders","shortDescription":"orders","identifier":"o1","labels":{"a":"b"},
		"api":{"targetUrl":"https://shop.example.com/api","spec":`+openapi+`,"credentials":{"oauth":{"url":"https://shop.example.com/token",
		"clientId":"********","clientSecret":"********","csrfInfo":{"tokenEndpointURL":"https://shop.example.com/csrf"}}},
		"headers":{"X-Key":["********"]},"queryParameters":{"tenant":["********"]}},"events":{"spec":`+asyncapi+`}}`, answer.Body.String())
	answer = w.do(http.MethodGet, "", "")
	require.Equal(t, http.StatusOK, answer.Code)
	require.JSONEq(t, `[{"id":"`+id+`","provider":"shop","name":"Orders API","description":"all orders","identifier":"o1","labels":{"a":"b"}}]`, answer.Body.String())

	answer = w.do(http.MethodPut, id, `{"provider":"shop","name":"Sales","description":"renamed","api":{"targetUrl":"https://shop.example.com/v2",
		"credentials":{"basic":{"username":"ada","password":"pw-2"}}}}`)
	require.Equal(t, http.StatusOK, answer.Code, answer.Body.String())
	require.NotContains(t, answer.Body.String(), "pw-2")
	changed := w.object(id)
	require.Equal(t, "orders-api", changed.Spec.Name, "the name in URLs stays")
	require.Nil(t, changed.Spec.Events)
	require.Nil(t, changed.Spec.API.Auth.OAuth2)
	secrets = w.secrets()
	require.Len(t, secrets, 1, "the old credentials are gone")
	require.Equal(t, map[string]string{"username": "ada", "password": "pw-2"}, texts(secrets[0].Data))

	answer = w.do(http.MethodDelete, id, "")
	require.Equal(t, http.StatusNoContent, answer.Code, answer.Body.String())
	require.Empty(t, w.secrets())
	require.JSONEq(t, `[]`, w.do(http.MethodGet, "", "").Body.String())
	for _, method := range []string{http.MethodGet, http.MethodDelete} {
		answer = w.do(method, id, "")
		require.Equal(t, http.StatusNotFound, answer.Code)
		require.EqualValues(t, 404, w.json(answer)["code"])
		require.Contains(t, w.json(answer)["error"], "has no service")
	}
	require.Equal(t, http.StatusNotFound, w.do(http.MethodPut, id, body("")).Code)
	require.Empty(t, w.logs.String(), "nothing went wrong, and nothing is told of credentials")
}

func texts(data map[string][]byte) map[string]string {
	all := map[string]string{}
	for key, value := range data {
		all[key] = string(value)
	}
	return all
}

func TestWhatIsNoServiceIsRefused(t *testing.T) {
	w := newWorld(t)
	api := func(rest string) string { return body(rest) }
	for name, tc := range map[string]struct {
		body string
		want string
	}{
		"no JSON":                          {"{", "the body is no JSON object"},
		"a list":                           {"[]", "the body is no JSON object"},
		"more than one":                    {body("") + "{}", "more than one JSON object"},
		"a field of another type":          {`{"provider":1}`, "provider is no string"},
		"no provider":                      {`{"name":"x","description":"x","api":{"targetUrl":"https://a.example"}}`, "provider is required"},
		"no name":                          {`{"provider":"x","description":"x","api":{"targetUrl":"https://a.example"}}`, "name is required"},
		"no description":                   {`{"provider":"x","name":"x","api":{"targetUrl":"https://a.example"}}`, "description is required"},
		"neither API nor events":           {`{"provider":"x","name":"x","description":"x"}`, "api, events or both are required"},
		"no targetUrl":                     {`{"provider":"x","name":"x","description":"x","api":{}}`, "api.targetUrl is required"},
		"a targetUrl that is none":         {`{"provider":"x","name":"x","description":"x","api":{"targetUrl":"shop"}}`, "the scheme must be http or https"},
		"a target inside":                  {`{"provider":"x","name":"x","description":"x","api":{"targetUrl":"http://127.0.0.1:1/"}}`, "is refused: 127.0.0.1 is a loopback address"},
		"a target of the cloud":            {`{"provider":"x","name":"x","description":"x","api":{"targetUrl":"http://169.254.169.254/"}}`, "is refused"},
		"a target in other spelling":       {`{"provider":"x","name":"x","description":"x","api":{"targetUrl":"http://2130706433/"}}`, "is refused"},
		"a target with user information":   {`{"provider":"x","name":"x","description":"x","api":{"targetUrl":"http://a:b@shop.example.com/"}}`, "user information does not belong"},
		"a target with a query":            {`{"provider":"x","name":"x","description":"x","api":{"targetUrl":"http://shop.example.com/?a=b"}}`, "without user information, query or fragment"},
		"a token URL inside":               {api(`,"credentials":{"oauth":{"url":"http://127.0.0.1:1/t","clientId":"i","clientSecret":"s"}}`), "auth.oauth2.tokenUrl"},
		"a CSRF URL of somebody else":      {api(`,"credentials":{"basic":{"username":"u","password":"p","csrfInfo":{"tokenEndpointURL":"https://evil.example/"}}}`), "must have the scheme, host and port of targetUrl"},
		"two ways to authenticate":         {api(`,"credentials":{"basic":{"username":"u","password":"p"},"certificateGen":{"commonName":"c"}}`), "write one of oauth, basic, certificateGen"},
		"oauth without a secret":           {api(`,"credentials":{"oauth":{"url":"https://a.example/","clientId":"i"}}`), "url, clientId and clientSecret are required"},
		"basic without a password":         {api(`,"credentials":{"basic":{"username":"u"}}`), "username and password are required"},
		"a user name with a colon":         {api(`,"credentials":{"basic":{"username":"a:b","password":"p"}}`), "a username with a colon"},
		"a certificate without a name":     {api(`,"credentials":{"certificateGen":{}}`), "commonName is required"},
		"a name that is too long":          {api(`,"credentials":{"certificateGen":{"commonName":"` + strings.Repeat("x", 65) + `"}}`), "more than 64 bytes"},
		"a mask where nothing is stored":   {api(`,"credentials":{"basic":{"username":"u","password":"********"}}`), "write the value"},
		"a header of the connection":       {api(`,"headers":{"Transfer-Encoding":["x"]}`), "is set by the connector itself"},
		"a header of an event":             {api(`,"headers":{"ce-type":["order.created"]}`), "would make the call an event"},
		"a header that splits":             {api(`,"headers":{"X-A":["a\r\nX-B: c"]}`), "cannot be sent in a header"},
		"a header name that is none":       {api(`,"headers":{"a b":["x"]}`), "a name is letters, digits"},
		"a header with two values":         {api(`,"headers":{"x":["a","b"]}`), "write one value"},
		"a header in two places":           {api(`,"headers":{"x-a":["a"]},"requestParameters":{"headers":{"X-A":["b"]}}`), "write one value"},
		"no OpenAPI":                       {api(`,"spec":{"hello":1}`), "api.spec: the OpenAPI document cannot be used"},
		"no OData":                         {api(`,"apiType":"OData","spec":"<html/>"`), "api.spec: the OData metadata cannot be used"},
		"a specification URL of a file":    {api(`,"specificationUrl":"file:///etc/passwd"`), "must be an http(s) URL"},
		"no AsyncAPI":                      {`{"provider":"x","name":"x","description":"x","events":{"spec":{"a":1}}}`, "events.spec: the AsyncAPI document cannot be used"},
		"a provider that is too long":      {`{"provider":"` + strings.Repeat("x", 300) + `","name":"x","description":"x","events":{}}`, "provider: Too long"},
		"a document that is much too long": {api(`,"spec":"` + strings.Repeat("x", 600<<10) + `"`), "524288 are allowed"},
	} {
		t.Run(name, func(t *testing.T) {
			answer := w.as(w.app, http.MethodPost, "", tc.body)
			if answer.Code == http.StatusTooManyRequests {
				w.handler = fresh(w)
				answer = w.as(w.app, http.MethodPost, "", tc.body)
			}
			require.Equal(t, http.StatusBadRequest, answer.Code, answer.Body.String())
			require.EqualValues(t, 400, w.json(answer)["code"])
			require.Contains(t, w.json(answer)["error"], tc.want)
		})
	}
	require.Empty(t, w.secrets(), "nothing is left of them")
	answer := w.do(http.MethodPost, "", `{"provider":"`+strings.Repeat("x", 2<<20)+`"}`)
	require.Equal(t, http.StatusRequestEntityTooLarge, answer.Code)
	answer = w.do(http.MethodPatch, "", "")
	require.Equal(t, http.StatusMethodNotAllowed, answer.Code)
	require.Equal(t, "GET, POST", answer.Header().Get("Allow"))
	answer = w.do(http.MethodPost, "x", "")
	require.Equal(t, "GET, PUT, DELETE", answer.Header().Get("Allow"))
	answer = w.as("nobody", http.MethodGet, "", "")
	require.Equal(t, http.StatusNotFound, answer.Code)
	require.Contains(t, w.json(answer)["error"], "there is no application nobody")
}

// fresh is the handler without what it remembers of who asked how often.
func fresh(w *world) *registry.Handler { return w.handler.Fresh() }

func TestDocumentsInEveryForm(t *testing.T) {
	w := newWorld(t)
	for name, tc := range map[string]struct{ api, want string }{
		"an empty one is none": {`,"spec":{}`, `null`},
		"OpenAPI as text":      {`,"spec":` + quoted(openapi), openapi},
		"OData":                {`,"apiType":"odata","spec":"` + edmx + `"`, `"` + edmx + `"`},
	} {
		id := w.register(body(tc.api))
		api, _ := w.json(w.do(http.MethodGet, id, ""))["api"].(map[string]any)
		got, err := json.Marshal(api["spec"])
		require.NoError(t, err)
		require.JSONEq(t, tc.want, string(got), name)
	}
	id := w.register(body(`,"specificationUrl":"https://shop.example.com/openapi.json"`))
	api, _ := w.json(w.do(http.MethodGet, id, ""))["api"].(map[string]any)
	require.Equal(t, "https://shop.example.com/openapi.json", api["specificationUrl"])
}

func quoted(text string) string {
	raw, _ := json.Marshal(text)
	return string(raw)
}

func TestAMaskKeepsACredentialWhereItGoesTheSameWay(t *testing.T) {
	w := newWorld(t)
	oauth := func(target, token, id, secret string) string {
		return fmt.Sprintf(`{"provider":"p","name":"Masked","description":"d","api":{"targetUrl":%q,"headers":{"X-Key":["%s"]},
			"credentials":{"oauth":{"url":%q,"clientId":%q,"clientSecret":%q}}}}`, target, secret, token, id, secret)
	}
	const target, token = "https://shop.example.com/api", "https://shop.example.com/token"
	id := w.register(oauth(target, token, "id-1", "s3cret"))
	answer := w.do(http.MethodPut, id, oauth("https://shop.example.com/v2", token, "********", "********"))
	require.Equal(t, http.StatusOK, answer.Code, answer.Body.String())
	require.Equal(t, map[string]string{"clientId": "id-1", "clientSecret": "s3cret", "header.X-Key": "s3cret"}, texts(w.secrets()[0].Data))

	for name, body := range map[string]string{
		"another token URL":        oauth(target, "https://evil.example/token", "id-1", "********"),
		"another host of the API":  oauth("https://evil.example/api", token, "id-1", "********"),
		"another port of the API":  oauth("https://shop.example.com:8443/api", token, "id-1", "********"),
		"another kind of password": `{"provider":"p","name":"x","description":"d","api":{"targetUrl":"https://shop.example.com/api","credentials":{"basic":{"username":"u","password":"********"}}}}`,
	} {
		answer := w.do(http.MethodPut, id, body)
		require.Equal(t, http.StatusBadRequest, answer.Code, name)
		require.Contains(t, answer.Body.String(), "write the value", name)
	}
	require.Equal(t, "s3cret", string(w.secrets()[0].Data["clientSecret"]), "nothing changed")

	// What somebody else wrote into a Secret is not the client's to keep.
	operators := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: v1alpha1.SystemNamespace, Name: w.app}, StringData: map[string]string{"username": "root", "password": "r00t"}}
	require.NoError(t, w.client.Create(t.Context(), operators))
	object := w.object(id)
	object.Spec.API.Auth = &v1alpha1.APIAuth{Basic: &v1alpha1.BasicAuth{Secret: v1alpha1.SecretRef{Name: w.app}}}
	require.NoError(t, w.client.Update(t.Context(), object))
	answer = w.do(http.MethodPut, id, `{"provider":"p","name":"x","description":"d","api":{"targetUrl":"https://shop.example.com/api","credentials":{"basic":{"username":"********","password":"********"}}}}`)
	require.Equal(t, http.StatusBadRequest, answer.Code)
	answer = w.do(http.MethodDelete, id, "")
	require.Equal(t, http.StatusNoContent, answer.Code)
	require.NoError(t, w.client.Get(t.Context(), client.ObjectKeyFromObject(operators), operators), "and not its to delete")
}

func TestAGeneratedCertificateIsToldAndItsKeyIsNot(t *testing.T) {
	w := newWorld(t)
	with := func(name string) string {
		return body(`,"credentials":{"certificateGen":{"commonName":"` + name + `"}}`)
	}
	certificate := func(id string) string {
		api, _ := w.json(w.do(http.MethodGet, id, ""))["api"].(map[string]any)
		credentials, _ := api["credentials"].(map[string]any)
		generated, _ := credentials["certificateGen"].(map[string]any)
		raw, err := base64.StdEncoding.DecodeString(generated["certificate"].(string))
		require.NoError(t, err)
		block, _ := pem.Decode(raw)
		require.Equal(t, "CERTIFICATE", block.Type)
		require.NotContains(t, string(raw), "PRIVATE")
		return generated["commonName"].(string) + " " + string(raw)
	}
	id := w.register(with("shop"))
	first := certificate(id)
	require.True(t, strings.HasPrefix(first, "shop "))
	require.Equal(t, http.StatusOK, w.do(http.MethodPut, id, with("shop")).Code)
	require.Equal(t, first, certificate(id), "who trusts it goes on to")
	require.Equal(t, http.StatusOK, w.do(http.MethodPut, id, with("other")).Code)
	require.NotEqual(t, first, certificate(id))
	require.Equal(t, corev1.TLSCertKey, "tls.crt")
	require.NotEmpty(t, w.secrets()[0].Data["tls.key"])
}

func TestNamesOfServices(t *testing.T) {
	w := newWorld(t)
	named := func(name string) string {
		return w.object(w.register(`{"provider":"p","name":` + quoted(name) + `,"description":"d","events":{}}`)).Spec.Name
	}
	require.Equal(t, "orders-api-v2", named("  Orders API (v2)!"))
	require.Regexp(t, `^orders-api-v2-[0-9a-f]{8}$`, named("orders api v2"), "a name that is taken is told apart")
	require.Equal(t, "service", named("Заказы"))
	require.Regexp(t, `^service-[0-9a-f]{8}$`, named("注文"))
	require.LessOrEqual(t, len(named(strings.Repeat("long ", 40))), 63)
}

func TestServicesThatKubectlWrote(t *testing.T) {
	w := newWorld(t)
	object := &v1alpha1.ApplicationService{
		ObjectMeta: metav1.ObjectMeta{Name: w.app + ".stock"},
		Spec: v1alpha1.ApplicationServiceSpec{Application: w.app, Name: "stock", ServiceDefinition: v1alpha1.ServiceDefinition{
			Provider: "git", Description: "written down", API: &v1alpha1.ServiceAPI{
				TargetURL: "https://shop.example.com", OpenAPI: "openapi: 3.0.3\ninfo: {title: Stock, version: '1'}\npaths: {}\n",
				RateLimit: &v1alpha1.ServiceRateLimit{Requests: 5},
			},
		}},
	}
	require.NoError(t, w.client.Create(t.Context(), object))
	var id string
	testkit.Eventually(t, patience, func() error {
		var all []map[string]any
		answer := w.do(http.MethodGet, "", "")
		if err := json.Unmarshal(answer.Body.Bytes(), &all); err != nil || len(all) != 1 {
			return fmt.Errorf("%d %s", answer.Code, answer.Body)
		}
		id = all[0]["id"].(string)
		require.Equal(t, "stock", all[0]["name"])
		return nil
	}, "it is in the list")
	require.Equal(t, string(object.UID), id)
	api, _ := w.json(w.do(http.MethodGet, id, ""))["api"].(map[string]any)
	spec, _ := api["spec"].(map[string]any)
	require.Equal(t, "3.0.3", spec["openapi"], "YAML is told as JSON")
	answer := w.do(http.MethodPut, id, body(""))
	require.Equal(t, http.StatusOK, answer.Code, answer.Body.String())
	require.NoError(t, w.client.Get(t.Context(), client.ObjectKeyFromObject(object), object))
	require.Equal(t, "Orders API", object.Spec.DisplayName)
	require.EqualValues(t, 5, object.Spec.API.RateLimit.Requests, "what the registry has no words for stays")

	// One that is written in the application is read, and changed there only.
	inline := w.app + "-inline"
	w.application(inline, v1alpha1.InlineService{Name: "orders", ServiceDefinition: v1alpha1.ServiceDefinition{
		Provider: "git", Description: "x", API: &v1alpha1.ServiceAPI{TargetURL: "https://shop.example.com", OpenAPI: openapi},
	}})
	testkit.Eventually(t, patience, func() error {
		if answer := w.as(inline, http.MethodGet, "orders", ""); answer.Code != http.StatusOK || !strings.Contains(answer.Body.String(), `"openapi":"3.0.3"`) {
			return fmt.Errorf("%d %s", answer.Code, answer.Body)
		}
		return nil
	}, "it is read")
	require.Equal(t, http.StatusConflict, w.as(inline, http.MethodPut, "orders", body("")).Code)
	require.Equal(t, http.StatusConflict, w.as(inline, http.MethodDelete, "orders", "").Code)
	require.Equal(t, http.StatusNotFound, w.as(inline, http.MethodGet, id, "").Code, "another application's is none of its")
	require.Equal(t, http.StatusNotFound, w.as(inline, http.MethodDelete, id, "").Code)
	require.Equal(t, http.StatusNotFound, w.as(inline, http.MethodPut, id, body("")).Code)
}

func TestAnApplicationHasLimits(t *testing.T) {
	w := newWorld(t, func(c *registry.Config) { c.MaxServices = 2 })
	w.register(body(""))
	w.register(body(""))
	answer := w.do(http.MethodPost, "", body(""))
	require.Equal(t, http.StatusForbidden, answer.Code)
	require.Contains(t, answer.Body.String(), "has 2 services, the most it may have")
	refused := 0
	for range 300 {
		if answer := w.do(http.MethodGet, "", ""); answer.Code == http.StatusTooManyRequests {
			require.Equal(t, "1", answer.Header().Get("Retry-After"))
			refused++
		}
	}
	require.NotZero(t, refused)
	require.Equal(t, http.StatusNotFound, w.as("nobody", http.MethodGet, "", "").Code, "others are not held back")
}

// Whatever a paired system sends: an answer in JSON, and no 5xx.
func FuzzRegistry(f *testing.F) {
	for _, seed := range []string{
		body(""), body(`,"spec":` + openapi), body(`,"credentials":{"basic":{"username":"a","password":"b"}}`), "{}", "[]", "",
		body(`,"apiType":"odata","spec":"` + edmx + `"`), body(`,"credentials":{"certificateGen":{"commonName":"x"}}`),
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		policy, err := targets.New(targets.Config{})
		if err != nil {
			t.Fatal(err)
		}
		handler := registry.NewInMemory(t, policy)
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/x/v1/metadata/services", bytes.NewReader(raw))
		recorder := httptest.NewRecorder()
		handler.Services(recorder, r, "commerce")
		answer, _ := io.ReadAll(recorder.Body)
		if recorder.Code >= 500 || !json.Valid(answer) {
			t.Errorf("%d %s", recorder.Code, answer)
		}
	})
}

// silent is a body that says that it is read, and comes no further until the end.
type silent struct {
	begun func()
	end   <-chan struct{}
}

func (s silent) Read([]byte) (int, error) {
	s.begun()
	<-s.end
	return 0, io.ErrUnexpectedEOF
}

func TestWhoSendsSlowlyKeepsNoOtherApplicationWaiting(t *testing.T) {
	h := registry.NewInMemory(t, nil, "victim", "slow0", "slow1", "slow2", "slow3")
	end := make(chan struct{})
	var begun, ended sync.WaitGroup
	begun.Add(4)
	send := func(ctx context.Context, application string, body io.Reader) int {
		w := httptest.NewRecorder()
		h.Services(w, httptest.NewRequestWithContext(ctx, http.MethodPost, "/"+application+"/v1/metadata/services", body), application)
		return w.Code
	}
	for i := range 4 {
		ended.Go(func() {
			send(t.Context(), fmt.Sprint("slow", i), silent{sync.OnceFunc(begun.Done), end})
		})
	}
	begun.Wait()
	body := `{"provider":"p","name":"n","description":"d","events":{}}`
	ok := send(t.Context(), "victim", strings.NewReader(body))
	// Another of the same application waits for its turn.
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	own := send(gone, "slow0", strings.NewReader(body))
	close(end)
	ended.Wait()
	require.Equal(t, http.StatusOK, ok)
	require.Equal(t, http.StatusServiceUnavailable, own)
	require.Equal(t, http.StatusOK, send(t.Context(), "slow0", strings.NewReader(body)))
}
