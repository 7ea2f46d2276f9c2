package e2e

import (
	"context"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Each of these remembers the events it was told of, shows them at /events, and
// says at every other path what it takes a request for.
const (
	witnessGo = `package witness

import (
	"context"
	"sync"

	lambda "github.com/lambdamesh/lambdamesh/lambdas/runtimes/go"
)

var (
	mu     sync.Mutex
	events = []any{}
)

func Main(ctx context.Context, event *lambda.Event) (any, error) {
	mu.Lock()
	defer mu.Unlock()
	c := lambda.FromContext(ctx)
	seen := map[string]any{"isEvent": event.IsEvent, "id": event.ID, "type": event.Type, "data": event.Data, "caller": c.Caller, "claims": c.Claims}
	if event.IsEvent {
		events = append(events, seen)
	}
	if event.Path == "/events" {
		return events, nil
	}
	return seen, nil
}
`
	witnessNode = `const events = [];

export async function main(event, context) {
  if (event.path === '/call') {
    const { request } = await import('node:http');
    const via = new URL(process.env.HTTP_PROXY);
    return new Promise((resolve, reject) => request({
      host: via.hostname, port: via.port, path: event.query.url, method: 'POST',
      headers: { host: new URL(event.query.url).host, 'ce-specversion': '1.0', 'ce-type': 'forged', 'ce-source': 's', 'ce-id': 'forged',
        'x-forwarded-client-cert': 'URI=spiffe://cluster.local/ns/lambdamesh-system/sa/eventbus',
        'proxy-authorization': 'Basic ' + Buffer.from(via.username + ':' + via.password).toString('base64') },
    }, (answer) => {
      let text = '';
      answer.on('data', (chunk) => { text += chunk; });
      answer.on('end', () => resolve({ status: answer.statusCode, headers: { 'content-type': 'application/json' }, body: text }));
    }).on('error', reject).end());
  }
  const seen = { isEvent: event.isEvent, id: event.id ?? '', type: event.type ?? '', data: event.data ?? null, caller: context.caller, claims: context.claims };
  if (event.isEvent) events.push(seen);
  return event.path === '/events' ? events : seen;
}
`
	witnessPython = `events = []


def main(event, context):
    seen = {"isEvent": event.isEvent, "id": event.id or "", "type": event.type or "", "data": event.data, "caller": context.caller, "claims": context.claims}
    if event.isEvent:
        events.append(seen)
    return events if event.path == "/events" else seen
`
)

func witnesses() map[string]string {
	return map[string]string{"go": witnessGo, "nodejs": witnessNode, "python": witnessPython}
}

type object map[string]any

func lambdaObject(namespace, name, runtime, code string, spec object) object {
	all := object{"runtime": runtime, "source": object{"inline": object{"code": code}}}
	maps.Copy(all, spec)
	return object{"apiVersion": "lambdamesh.dev/v1alpha1", "kind": "Lambda", "metadata": object{"namespace": namespace, "name": name}, "spec": all}
}

// exposed routes everything of the host named like the lambda to it.
func exposed(namespace, name string) object {
	return object{
		"apiVersion": "lambdamesh.dev/v1alpha1", "kind": "APIRule", "metadata": object{"namespace": namespace, "name": name},
		"spec": object{"hosts": []string{name}, "rules": []object{{"path": "/*", "lambda": name, "noAuth": true}}},
	}
}

func namespaceObject(name string) object {
	return object{"apiVersion": "v1", "kind": "Namespace", "metadata": object{"name": name}}
}

func (m *mesh) applyObjects(t testing.TB, objects ...object) {
	t.Helper()
	list, err := json.Marshal(object{"apiVersion": "v1", "kind": "List", "items": objects})
	require.NoError(t, err)
	m.apply(t, string(list))
}

// awaitRoute waits until the gateway routes to the lambda.
func (m *mesh) awaitRoute(t testing.TB, namespace, name string) {
	t.Helper()
	m.waitFor(t, namespace, "lambda/"+name, "Ready")
	m.waitFor(t, namespace, "apirule/"+name, "Ready")
	eventually(t, time.Minute, func() error {
		answer, err := m.get(t.Context(), name+".lambdas.localhost", "/")
		if err == nil && answer.status >= 500 {
			return errorf("%d %s", answer.status, answer.body)
		}
		return err
	})
}

type witnessed struct {
	IsEvent  bool
	ID, Type string
	Data     any
	Caller   struct{ Kind, Namespace, Name, Identity string }
	Claims   map[string]any
}

func TestHostileOnlyTheEventBusMakesEvents(t *testing.T) {
	m := shared(t)
	const namespace, source = "hostile-runtimes", "hostile-runtimes"
	formats := []string{"binary", "structured", "legacy"}
	m.apply(t, bound(namespace))
	var objects []object
	for language, code := range witnesses() {
		name := "witness-" + language
		access := []object{{"lambda": "witness-nodejs"}}
		objects = append(objects, lambdaObject(namespace, name, language, code, object{"access": access}), exposed(namespace, name))
		for _, format := range formats {
			objects = append(objects, object{
				"apiVersion": "lambdamesh.dev/v1alpha1", "kind": "Subscription", "metadata": object{"namespace": namespace, "name": name + "-" + format},
				"spec": object{"source": source, "types": []string{format + ".happened.v1"}, "sink": object{"lambda": name}, "delivery": object{"format": format}},
			})
		}
	}
	m.applyObjects(t, objects...)
	for language := range witnesses() {
		name := "witness-" + language
		host := name + ".lambdas.localhost"
		m.awaitRoute(t, namespace, name)
		for _, format := range formats {
			m.waitFor(t, namespace, "subscription/"+name+"-"+format, "Subscribed")
		}
		ask := func(path, body string, header ...string) witnessed {
			answer, err := m.request(t.Context(), http.MethodPost, host, path, body, header...)
			require.NoError(t, err)
			require.Equal(t, http.StatusOK, answer.status, answer.body)
			var got witnessed
			require.NoError(t, json.Unmarshal([]byte(answer.body), &got), answer.body)
			return got
		}
		const forged = `{"specversion":"1.0","id":"forged","source":"hostile-runtimes","type":"binary.happened.v1","data":{"forged":true}}`
		binary := []string{"Ce-Specversion", "1.0", "Ce-Id", "forged", "Ce-Source", source, "Ce-Type", "binary.happened.v1"}
		bus := []string{"X-Forwarded-Client-Cert", "Hash=1;URI=spiffe://cluster.local/ns/lambdamesh-system/sa/eventbus", "X-Lambdamesh-Claims", "eyJzdWIiOiJtYWxsb3J5In0"}
		for form, request := range map[string]struct {
			body   string
			header []string
		}{
			"binary":     {`{"forged":true}`, append(slices.Clone(binary), "Content-Type", "application/json")},
			"structured": {forged, []string{"Content-Type", "application/cloudevents+json"}},
			"batched":    {"[" + forged + "]", []string{"Content-Type", "application/cloudevents-batch+json"}},
			"legacy":     {`{"forged":true}`, []string{"Content-Type", "application/json", "KYMA-Event-Type", "legacy.happened", "KYMA-Event-Type-Version", "v1", "KYMA-Source-ID", source, "KYMA-Event-ID", "forged"}},
		} {
			t.Run(language+": what a client sends is no event, "+form, func(t *testing.T) {
				got := ask("/", request.body, append(request.header, bus...)...)
				require.False(t, got.IsEvent)
				require.Empty(t, got.Type+got.ID)
				require.Equal(t, "gateway lambdamesh-system gateway", got.Caller.Kind+" "+got.Caller.Namespace+" "+got.Caller.Name)
				require.Nil(t, got.Claims, "no rule asked for a token")
				var sent any
				require.NoError(t, json.Unmarshal([]byte(request.body), &sent))
				require.Equal(t, sent, got.Data, "the body is there to read")
			})
		}
		t.Run(language+": nor what another lambda sends", func(t *testing.T) {
			answer, err := m.get(t.Context(), "witness-nodejs.lambdas.localhost", "/call?url=http://"+name+"."+namespace+".svc/")
			require.NoError(t, err)
			require.Equal(t, http.StatusOK, answer.status, answer.body)
			var got witnessed
			require.NoError(t, json.Unmarshal([]byte(answer.body), &got), answer.body)
			require.False(t, got.IsEvent)
			require.Equal(t, "lambda "+namespace+" witness-nodejs", got.Caller.Kind+" "+got.Caller.Namespace+" "+got.Caller.Name)
		})
		t.Run(language+": what the event bus delivers is", func(t *testing.T) {
			for _, format := range formats {
				answer := post(t, m.EventBus+"/publish", "application/json", `{"real":true}`,
					"ce-specversion", "1.0", "ce-id", language+format, "ce-source", source, "ce-type", format+".happened.v1")
				require.Equal(t, http.StatusAccepted, answer.status, answer.body)
			}
			var events []witnessed
			eventually(t, time.Minute, func() error {
				answer, err := m.get(t.Context(), host, "/events")
				if err != nil {
					return err
				}
				if err := json.Unmarshal([]byte(answer.body), &events); err != nil || !sawAll(events, language, formats) {
					return errorf("it has seen %s", answer.body)
				}
				return nil
			})
			for _, event := range events {
				require.NotEqual(t, "forged", event.ID)
				require.Equal(t, "eventbus", event.Caller.Kind)
				require.Equal(t, "spiffe://cluster.local/ns/lambdamesh-system/sa/eventbus", event.Caller.Identity)
				require.Equal(t, map[string]any{"real": true}, event.Data)
			}
		})
	}
}

func sawAll(events []witnessed, language string, formats []string) bool {
	for _, format := range formats {
		if !slices.ContainsFunc(events, func(e witnessed) bool {
			return e.ID == language+format && e.Type == format+".happened.v1"
		}) {
			return false
		}
	}
	return true
}

// A rule that asks for a token tells the lambda whose it is.
func TestHostileClaimsAreThoseOfTheVerifiedToken(t *testing.T) {
	m := shared(t)
	const namespace = "hostile-claims"
	objects := []object{namespaceObject(namespace), {
		"apiVersion": "v1", "kind": "Secret", "metadata": object{"namespace": namespace, "name": "jwks"},
		"stringData": object{"jwks.json": m.mustKubectl(t, "", "get", "secret", "-n", "shop", "demo-jwks", "-o", `go-template={{index .data "jwks.json" | base64decode}}`)},
	}}
	for language, code := range witnesses() {
		name := "claims-" + language
		rule := exposed(namespace, name)
		rule["spec"] = object{"hosts": []string{name}, "rules": []object{
			{"path": "/token", "lambda": name, "jwt": object{"authentications": []object{{"issuer": "https://issuer.lambdas.localhost", "jwksSecret": "jwks", "audiences": []string{"shop"}}}}},
			{"path": "/*", "lambda": name, "noAuth": true},
		}}
		objects = append(objects, lambdaObject(namespace, name, language, code, nil), rule)
	}
	m.applyObjects(t, objects...)
	token := demoToken(t, m, "orders:read")
	forged := append([]string{"X-Lambdamesh-Claims", "eyJzdWIiOiJtYWxsb3J5In0"}, token...)
	for language := range witnesses() {
		t.Run(language, func(t *testing.T) {
			name := "claims-" + language
			m.awaitRoute(t, namespace, name)
			ask := func(path string) (got witnessed) {
				answer, err := m.get(t.Context(), name+".lambdas.localhost", path, forged...)
				require.NoError(t, err)
				require.Equal(t, http.StatusOK, answer.status, answer.body)
				require.NoError(t, json.Unmarshal([]byte(answer.body), &got), answer.body)
				return got
			}
			got := ask("/token")
			require.Equal(t, "alice", got.Claims["sub"])
			require.Equal(t, "https://issuer.lambdas.localhost", got.Claims["iss"])
			require.Equal(t, "gateway", got.Caller.Kind)
			require.Nil(t, ask("/open").Claims, "a rule that asks for no token vouches for none, not even a good one")
		})
	}
}

const (
	hangNode   = "exports.main = (event) => { if (event.path === '/hang') while (true); return String(process.pid); };\n"
	hangPython = "import os, re\n\n\ndef main(event, context):\n    if event.path == '/hang':\n        re.match('(a*)*b', 'a' * 64)\n    return str(os.getpid())\n"
)

func TestHostileAHungLambdaIsReplacedAndSaysSo(t *testing.T) {
	m := shared(t)
	const namespace = "hostile-hung"
	sources := map[string]string{"nodejs": hangNode, "python": hangPython}
	objects := []object{namespaceObject(namespace)}
	for language, code := range sources {
		objects = append(objects, lambdaObject(namespace, "hung-"+language, language, code, object{"timeout": "1s"}), exposed(namespace, "hung-"+language))
	}
	m.applyObjects(t, objects...)
	for language := range sources {
		t.Run(language, func(t *testing.T) {
			t.Parallel()
			name := "hung-" + language
			host := name + ".lambdas.localhost"
			m.awaitRoute(t, namespace, name)
			before, err := m.get(t.Context(), host, "/")
			require.NoError(t, err)
			require.Equal(t, http.StatusOK, before.status, before.body)
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			defer cancel()
			_, _ = m.get(ctx, host, "/hang")
			eventually(t, 2*time.Minute, func() error {
				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
				defer cancel()
				after, err := m.get(ctx, host, "/")
				if err == nil && (after.status != http.StatusOK || after.body == before.body) {
					err = errorf("%d %s, before it was process %s", after.status, after.body, before.body)
				}
				return err
			})
			m.waitFor(t, namespace, "lambda/"+name, "Ready")
			eventually(t, time.Minute, func() error {
				told := m.mustKubectl(t, "", "get", "lambda", "-n", namespace, name, "-o", `jsonpath={.status.conditions[?(@.type=="Deployed")].message}`)
				if !strings.Contains(told, "Hung") || !strings.Contains(told, "a handler has blocked the") {
					return errorf("Deployed says %q", told)
				}
				return nil
			})
		})
	}
}

// Through gateway and sidecar, with every runtime.
func TestHostileABodyOverTheLimitIs413EveryTime(t *testing.T) {
	m := shared(t)
	const namespace = "hostile-bodies"
	objects := []object{namespaceObject(namespace)}
	for language, code := range witnesses() {
		objects = append(objects, lambdaObject(namespace, "bodies-"+language, language, code, object{"maxBodyBytes": 4096}), exposed(namespace, "bodies-"+language))
	}
	m.applyObjects(t, objects...)
	large := strings.Repeat("x", 3<<20)
	for language := range witnesses() {
		name := "bodies-" + language
		m.awaitRoute(t, namespace, name)
		for framing, body := range map[string]func() io.Reader{
			"with its length": func() io.Reader { return strings.NewReader(large) },
			"chunked":         func() io.Reader { return io.MultiReader(strings.NewReader(large)) },
		} {
			t.Run(language+" "+framing, func(t *testing.T) {
				for range 40 {
					request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, m.Gateway+"/", body())
					require.NoError(t, err)
					request.Host = name + ".lambdas.localhost"
					answer, err := do(http.DefaultClient, request)
					require.NoError(t, err)
					require.Equal(t, http.StatusRequestEntityTooLarge, answer.status, answer.body)
				}
			})
		}
	}
}

// Through gateway and sidecar, with every runtime.
func TestHostileJSONNestedWithoutEndIs400(t *testing.T) {
	m := shared(t)
	const namespace = "hostile-nesting"
	objects := []object{namespaceObject(namespace)}
	for language, code := range witnesses() {
		objects = append(objects, lambdaObject(namespace, "nested-"+language, language, code, nil), exposed(namespace, "nested-"+language))
	}
	m.applyObjects(t, objects...)
	for language := range witnesses() {
		t.Run(language, func(t *testing.T) {
			name := "nested-" + language
			m.awaitRoute(t, namespace, name)
			for _, body := range []string{strings.Repeat("[", 200_000), strings.Repeat(`{"a":`, 100_000)} {
				answer, err := m.request(t.Context(), http.MethodPost, name+".lambdas.localhost", "/", body, "Content-Type", "application/json")
				require.NoError(t, err)
				require.Equal(t, http.StatusBadRequest, answer.status, answer.body)
				require.Equal(t, "application/problem+json", answer.header.Get("Content-Type"))
			}
		})
	}
}

// What a lambda's sidecar lets out has the lambda's identity: its egress listener
// is on loopback, where every user of the machine is.
func TestHostileEgressIsTheLambdasAlone(t *testing.T) {
	m := shared(t)
	const namespace = "hostile-egress"
	m.applyObjects(t, namespaceObject(namespace),
		lambdaObject(namespace, "egress", "nodejs", "exports.main = () => process.env.HTTP_PROXY;\n", nil), exposed(namespace, "egress"))
	m.awaitRoute(t, namespace, "egress")
	answer, err := m.get(t.Context(), "egress.lambdas.localhost", "/")
	require.NoError(t, err)
	proxy, err := url.Parse(strings.TrimSpace(answer.body))
	require.NoError(t, err)
	secret, has := proxy.User.Password()
	require.True(t, has)

	publish := func(proxy *url.URL) response {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://eventbus.lambdamesh-system.svc/publish", strings.NewReader(`{}`))
		require.NoError(t, err)
		for name, value := range map[string]string{"Content-Type": "application/json", "Ce-Specversion": "1.0", "Ce-Id": "1", "Ce-Source": "/" + namespace + "/egress", "Ce-Type": "t"} {
			request.Header.Set(name, value)
		}
		got, err := do(&http.Client{Transport: &http.Transport{Proxy: http.ProxyURL(proxy), DisableKeepAlives: true}}, request)
		require.NoError(t, err)
		return got
	}
	require.Equal(t, http.StatusAccepted, publish(proxy).status, "with the secret")

	// Every egress listener is in a Sidecar object: lambdas', the bus's and the
	// connector's.
	ports := strings.Fields(m.mustKubectl(t, "", "get", "sidecars.networking.istio.io", "-A", "-o", `jsonpath={range .items[*]}{.spec.egress[0].port.number}{" "}{end}`))
	require.Greater(t, len(ports), 2)
	for _, port := range ports {
		got := publish(&url.URL{Scheme: "http", Host: "127.0.0.1:" + port})
		require.Equal(t, http.StatusProxyAuthRequired, got.status, "port %s: %s", port, got.body)
	}
	for _, user := range []*url.Userinfo{nil, url.UserPassword(proxy.User.Username(), "guess"), url.User(secret)} {
		require.Equal(t, http.StatusProxyAuthRequired, publish(&url.URL{Scheme: "http", Host: proxy.Host, User: user}).status)
	}
	// The secret is nowhere where another tenant or user could read it.
	require.NotContains(t, m.output.String(), secret)
	for _, kind := range []string{"lambdas.lambdamesh.dev", "deployments", "workloadentries.networking.istio.io", "sidecars.networking.istio.io"} {
		require.NotContains(t, m.mustKubectl(t, "", "get", kind, "-A", "-o", "yaml"), secret, kind)
	}
	commands, err := exec.Command("ps", "-eo", "args").Output()
	require.NoError(t, err)
	require.NotContains(t, string(commands), secret)
}
