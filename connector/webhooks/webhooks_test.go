package webhooks_test

import (
	"bufio"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/lambdamesh/lambdamesh/connector/inbound"
	"github.com/lambdamesh/lambdamesh/connector/webhooks"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/kube"
)

// now is the time of the gateway in these tests.
var now = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)

// bus stores events by id, as the event bus does.
type bus struct {
	mu     sync.Mutex
	events []*inbound.Event
	err    error
}

func (b *bus) Publish(_ context.Context, application string, e *inbound.Event) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err != nil {
		return b.err
	}
	if application != "shop" {
		return fmt.Errorf("published for %s", application)
	}
	for _, known := range b.events {
		if known.ID == e.ID {
			return nil
		}
	}
	b.events = append(b.events, e)
	return nil
}

func (b *bus) take() []*inbound.Event {
	b.mu.Lock()
	defer b.mu.Unlock()
	all := b.events
	b.events = nil
	return all
}

type world struct {
	bus      *bus
	gateway  *webhooks.Gateway
	registry *prometheus.Registry
	objects  client.Client
}

func start(t testing.TB, hooks ...v1alpha1.Webhook) *world {
	t.Helper()
	scheme, err := kube.Scheme()
	require.NoError(t, err)
	secret := func(name string, data map[string][]byte) *corev1.Secret {
		return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: v1alpha1.SystemNamespace, Name: name}, Data: data}
	}
	w := &world{bus: &bus{}, registry: prometheus.NewRegistry()}
	w.objects = fake.NewClientBuilder().WithScheme(scheme).WithObjects(
		&v1alpha1.Application{ObjectMeta: metav1.ObjectMeta{Name: "shop"}, Spec: v1alpha1.ApplicationSpec{Webhooks: hooks}},
		secret("hook", map[string][]byte{"secret": []byte("hush\n"), "previous": []byte("before")}),
		secret("empty", map[string][]byte{"secret": []byte("\n"), "previous": []byte("before")}),
		secret("basic", map[string][]byte{"secret": []byte("Bearer hush")}),
		secret("standard", map[string][]byte{"secret": []byte("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")}),
	).Build()
	w.gateway, err = webhooks.New(webhooks.Config{
		Objects: w.objects, Publisher: w.bus, Now: func() time.Time { return now }, Registry: w.registry,
	})
	require.NoError(t, err)
	return w
}

func (w *world) call(t testing.TB, name string, body io.Reader, header ...string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "https://hooks.example.com/webhooks/shop/"+name, body)
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	recorder := httptest.NewRecorder()
	w.gateway.Webhook(recorder, r, "shop", name)
	return recorder
}

func sha(secret, text string) []byte {
	h := hmac.New(sha256.New, []byte(secret))
	h.Write([]byte(text))
	return h.Sum(nil)
}

func hook(provider, secret string, types ...string) v1alpha1.Webhook {
	return v1alpha1.Webhook{Name: "orders", Provider: provider, SecretName: secret, Types: types}
}

const (
	order      = `{"id":820982911946154508,"email":"jon@example.com","total_price":"398.00"}`
	charge     = `{"id":"evt_1NG8Du2eZvKYlo2CUI79vXWy","object":"event","created":1686089970,"type":"charge.succeeded","data":{"object":{"id":"ch_1"}}}`
	pull       = `{"action":"opened","number":2,"repository":{"full_name":"octocat/hello"}}`
	message    = `{"notificationType":"Message","projectKey":"p","resource":{"typeId":"order","id":"o1"},"id":"m1","version":1,"type":"OrderCreated","createdAt":"2026-03-04T05:06:00.000Z"}`
	changed    = `{"notificationType":"ResourceUpdated","projectKey":"p","resource":{"typeId":"product","id":"p1"},"version":3}`
	cloudEvent = `{"specversion":"1.0","id":"c1","type":"com.commercetools.order.message.OrderCreated","source":"/p/orders","subject":"o1","time":"2026-03-04T05:06:00Z","data":{"a":1}}`
)

// A call of each provider, signed as the provider documents it, is an event once,
// however often it comes, and whatever the headers say that are not signed.
func TestProviders(t *testing.T) {
	seconds := fmt.Sprint(now.Unix())
	key, err := base64.StdEncoding.DecodeString("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
	require.NoError(t, err)
	custom := hook("hmac", "hook")
	custom.HMAC = &v1alpha1.HMACScheme{
		Header: "X-Signature", Prefix: "v1=", Encoding: "base64", Algorithm: "sha512", TimestampHeader: "X-At", TypePointer: "/what/0/kind", IDPointer: "/n",
	}
	sha512sum := hmac.New(sha512.New, []byte("hush"))
	sha512sum.Write([]byte(seconds + `.{"what":[{"kind":"order.paid"}],"n":7}`))
	for name, c := range map[string]struct {
		hook   v1alpha1.Webhook
		body   string
		header []string
		// unsigned headers that say something else the second time
		again []string
		want  inbound.Event
	}{
		"shopify": {
			hook("shopify", "hook"), order,
			[]string{"X-Shopify-Topic", "orders/create", "X-Shopify-Hmac-Sha256", base64.StdEncoding.EncodeToString(sha("hush", order)), "X-Shopify-Webhook-Id", "1"},
			[]string{"X-Shopify-Topic", "orders/delete", "X-Shopify-Webhook-Id", "2", "X-Shopify-Event-Id", "3"},
			inbound.Event{Type: "com.shopify.orders.create", Subject: "820982911946154508", Data: []byte(order)},
		},
		"github": {
			hook("github", "hook"), pull,
			[]string{"X-GitHub-Event", "pull_request", "X-Hub-Signature-256", "sha256=" + hex.EncodeToString(sha("hush", pull)), "X-GitHub-Delivery", "1"},
			[]string{"X-GitHub-Event", "issues", "X-GitHub-Delivery", "2"},
			inbound.Event{Type: "com.github.pull_request.opened", Subject: "octocat/hello", Data: []byte(pull)},
		},
		"stripe": {
			hook("stripe", "hook"), charge,
			[]string{"Stripe-Signature", "t=" + seconds + ",v1=" + hex.EncodeToString(sha("hush", seconds+"."+charge)) + ",v0=00"},
			nil,
			inbound.Event{ID: "orders/evt_1NG8Du2eZvKYlo2CUI79vXWy", Type: "com.stripe.charge.succeeded", Subject: "ch_1", Time: time.Unix(1686089970, 0), Data: []byte(charge)},
		},
		"stripe with the secret before": {
			hook("stripe", "hook"), charge,
			[]string{"Stripe-Signature", "t=" + seconds + ",v1=00ff,v1=" + hex.EncodeToString(sha("before", seconds+"."+charge))},
			nil,
			inbound.Event{ID: "orders/evt_1NG8Du2eZvKYlo2CUI79vXWy", Type: "com.stripe.charge.succeeded", Subject: "ch_1", Time: time.Unix(1686089970, 0), Data: []byte(charge)},
		},
		"commercetools message": {
			hook("commercetools", "basic", "OrderCreated"), message,
			[]string{"Authorization", "Bearer hush"},
			nil,
			inbound.Event{
				ID: "orders/m1", Type: "com.commercetools.order.message.OrderCreated", Subject: "o1",
				Time: time.Date(2026, 3, 4, 5, 6, 0, 0, time.UTC), Data: []byte(message),
			},
		},
		"commercetools change": {
			hook("commercetools", "basic"), changed,
			[]string{"Authorization", "Bearer hush"},
			nil,
			inbound.Event{Type: "com.commercetools.product.change.ResourceUpdated", Subject: "p1", Data: []byte(changed)},
		},
		"commercetools CloudEvent": {
			hook("commercetools", "basic"), cloudEvent,
			[]string{"Authorization", "Bearer hush"},
			nil,
			inbound.Event{
				ID: "orders/c1", Type: "com.commercetools.order.message.OrderCreated", Subject: "o1",
				Time: time.Date(2026, 3, 4, 5, 6, 0, 0, time.UTC), Data: []byte(`{"a":1}`),
			},
		},
		"standard webhooks": {
			hook("hmac", "standard"), `{"type":"order.created"}`,
			[]string{
				"webhook-id", "msg_1", "webhook-timestamp", seconds,
				"webhook-signature", "v1,AAAA v1," + base64.StdEncoding.EncodeToString(sha(string(key), "msg_1."+seconds+`.{"type":"order.created"}`)),
			},
			nil,
			inbound.Event{ID: "orders/msg_1", Type: "order.created", Data: []byte(`{"type":"order.created"}`)},
		},
		"an HMAC of one's own": {
			custom, `{"what":[{"kind":"order.paid"}],"n":7}`,
			[]string{"X-Signature", "v1=" + base64.StdEncoding.EncodeToString(sha512sum.Sum(nil)), "X-At", seconds},
			nil,
			inbound.Event{ID: "orders/7", Type: "order.paid", Data: []byte(`{"what":[{"kind":"order.paid"}],"n":7}`)},
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := start(t, c.hook)
			first := w.call(t, "orders", strings.NewReader(c.body), c.header...)
			require.Equal(t, http.StatusOK, first.Code, first.Body)
			require.Equal(t, http.StatusOK, w.call(t, "orders", strings.NewReader(c.body), c.header...).Code)
			if c.again != nil {
				signature := []string{c.header[2], c.header[3]}
				require.Equal(t, http.StatusOK, w.call(t, "orders", strings.NewReader(c.body), append(signature, c.again...)...).Code)
			}
			events := w.bus.take()
			require.Len(t, events, 1, "it is stored once")
			got := *events[0]
			if c.want.ID == "" {
				require.Regexp(t, `^(orders|shopify|github)/[0-9a-f]{64}$`, got.ID)
				c.want.ID = got.ID
			}
			c.want.ContentType = "application/json"
			require.True(t, c.want.Time.Equal(got.Time), got.Time)
			c.want.Time = got.Time
			require.Equal(t, c.want, got)

			// What is not signed as it is, is refused, and nothing tells why.
			for i := 0; i < len(c.header); i += 2 {
				var without, changed, twice []string
				for j := 0; j < len(c.header); j += 2 {
					twice = append(twice, c.header[j], c.header[j+1])
					if j == i {
						changed = append(changed, c.header[j], c.header[j+1]+"0")
						twice = append(twice, c.header[j], c.header[j+1])
						continue
					}
					without = append(without, c.header[j], c.header[j+1])
					changed = append(changed, c.header[j], c.header[j+1])
				}
				switch strings.ToLower(c.header[i]) {
				case "x-shopify-topic", "x-shopify-webhook-id", "x-github-event", "x-github-delivery":
					continue // not signed
				}
				w.refused(t, c.body, without, "without "+c.header[i])
				w.refused(t, c.body, twice, c.header[i]+" twice")
				if strings.ToLower(c.header[i]) != "stripe-signature" { // v0 is not for us
					w.refused(t, c.body, changed, "another "+c.header[i])
				}
			}
			if c.hook.Provider != "commercetools" {
				w.refused(t, c.body+" ", c.header, "another body")
				w.refused(t, "", c.header, "no body")
			}
			require.Empty(t, w.bus.take())
		})
	}
}

// Webhooks that share a secret, as those of one Shopify app do: a call recorded at
// one is no other event at another.
func TestARecordedCallIsOneEventAtEveryWebhookWithItsSecret(t *testing.T) {
	created, canceled := hook("shopify", "hook", "orders/create"), hook("shopify", "hook", "orders/canceled")
	canceled.Name = "canceled"
	w := start(t, created, canceled)
	signature := base64.StdEncoding.EncodeToString(sha("hush", order))
	for name, topic := range map[string]string{"orders": "orders/create", "canceled": "orders/canceled"} {
		answer := w.call(t, name, strings.NewReader(order), "X-Shopify-Topic", topic, "X-Shopify-Hmac-Sha256", signature)
		require.Equal(t, http.StatusOK, answer.Code, answer.Body)
	}
	require.Len(t, w.bus.take(), 1)
}

// refused requires that a call is answered as every other that is refused.
func (w *world) refused(t *testing.T, body string, header []string, what string) {
	t.Helper()
	answer := w.call(t, "orders", strings.NewReader(body), header...)
	require.Equal(t, http.StatusUnauthorized, answer.Code, what)
	require.JSONEq(t, `{"code":401,"error":"unauthorized"}`, answer.Body.String(), what)
}

// Samples of providers, with the signatures that they publish for them.
func TestPublishedSamples(t *testing.T) {
	scheme, err := kube.Scheme()
	require.NoError(t, err)
	for name, c := range map[string]struct {
		hook         v1alpha1.Webhook
		secret, body string
		header       []string
		at           time.Time
		status       int
	}{
		// https://docs.github.com/en/webhooks/using-webhooks/validating-webhook-deliveries#testing-the-webhook-payload-validation;
		// its body is no JSON: the signature is right.
		"github": {
			hook("github", "sample"), "It's a Secret to Everybody", "Hello, World!",
			[]string{"X-GitHub-Event", "push", "X-Hub-Signature-256", "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"},
			now, http.StatusBadRequest,
		},
		// https://github.com/standard-webhooks/standard-webhooks/blob/main/libraries/javascript/src/index.test.ts
		"standard webhooks": {
			hook("hmac", "sample"), "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", `{"test": 2432232314}`,
			[]string{
				"webhook-id", "msg_p5jXN8AQM9LWM0D4loKWxJek", "webhook-timestamp", "1614265330",
				"webhook-signature", "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
			},
			time.Unix(1614265330, 0), http.StatusOK,
		},
	} {
		t.Run(name, func(t *testing.T) {
			objects := fake.NewClientBuilder().WithScheme(scheme).WithObjects(
				&v1alpha1.Application{ObjectMeta: metav1.ObjectMeta{Name: "shop"}, Spec: v1alpha1.ApplicationSpec{Webhooks: []v1alpha1.Webhook{c.hook}}},
				&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: v1alpha1.SystemNamespace, Name: "sample"}, Data: map[string][]byte{"secret": []byte(c.secret)}},
			).Build()
			w := &world{bus: &bus{}}
			w.gateway, err = webhooks.New(webhooks.Config{
				Objects: objects, Publisher: w.bus, Now: func() time.Time { return c.at }, Registry: prometheus.NewRegistry(),
			})
			require.NoError(t, err)
			require.Equal(t, c.status, w.call(t, "orders", strings.NewReader(c.body), c.header...).Code)
			w.refused(t, c.body+"!", c.header, "another body")
		})
	}
}

func TestStaleSignaturesAreRefused(t *testing.T) {
	w := start(t, hook("stripe", "hook"))
	for off, want := range map[time.Duration]int{
		-6 * time.Minute: 401, -4 * time.Minute: 200, 4 * time.Minute: 200, 6 * time.Minute: 401, -1000 * 24 * time.Hour: 401,
	} {
		at := fmt.Sprint(now.Add(off).Unix())
		answer := w.call(t, "orders", strings.NewReader(charge), "Stripe-Signature", "t="+at+",v1="+hex.EncodeToString(sha("hush", at+"."+charge)))
		require.Equal(t, want, answer.Code, off)
	}
	for _, at := range []string{"x", "-1", "99999999999999999999", "9223372036854775807", ""} {
		answer := w.call(t, "orders", strings.NewReader(charge), "Stripe-Signature", "t="+at+",v1="+hex.EncodeToString(sha("hush", at+"."+charge)))
		require.Equal(t, http.StatusUnauthorized, answer.Code, at)
	}
	require.EqualValues(t, 5, count(t, w, "Stale"))
	require.EqualValues(t, 2, count(t, w, "Stored"))
}

func count(t *testing.T, w *world, result string) float64 {
	t.Helper()
	families, err := w.registry.Gather()
	require.NoError(t, err)
	for _, family := range families {
		for _, metric := range family.GetMetric() {
			for _, label := range metric.GetLabel() {
				if label.GetName() == "result" && label.GetValue() == result {
					return metric.GetCounter().GetValue()
				}
			}
		}
	}
	return 0
}

func TestWhoHasNoSecretRefusesEverybody(t *testing.T) {
	for _, name := range []string{"empty", "nowhere"} {
		w := start(t, hook("github", name))
		answer := w.call(t, "orders", strings.NewReader(pull), "X-GitHub-Event", "pull_request", "X-Hub-Signature-256", "sha256="+hex.EncodeToString(sha("", pull)))
		require.Equal(t, http.StatusServiceUnavailable, answer.Code, name)
		require.NotContains(t, answer.Body.String(), name)
		require.Empty(t, w.bus.take())
	}
}

func TestWhatIsNotTaken(t *testing.T) {
	w := start(t, hook("shopify", "hook", "orders/create"))
	signed := func(body, topic string) []string {
		return []string{"X-Shopify-Topic", topic, "X-Shopify-Hmac-Sha256", base64.StdEncoding.EncodeToString(sha("hush", body))}
	}
	answer := w.call(t, "orders", strings.NewReader(order), signed(order, "orders/paid")...)
	require.Equal(t, http.StatusOK, answer.Code)
	require.JSONEq(t, `{"stored":false}`, answer.Body.String())
	require.Equal(t, http.StatusNotFound, w.call(t, "others", strings.NewReader(order), signed(order, "orders/create")...).Code)
	for name, body := range map[string]string{"no JSON": "payload=%7B%7D", "half of it": order[:20]} {
		require.Equal(t, http.StatusBadRequest, w.call(t, "orders", strings.NewReader(body), signed(body, "orders/create")...).Code, name)
	}
	for _, topic := range []string{"../orders", "orders create", strings.Repeat("o", 300)} {
		require.Equal(t, http.StatusBadRequest, w.call(t, "orders", strings.NewReader(order), signed(order, topic)...).Code, topic)
	}
	require.Equal(t, http.StatusRequestEntityTooLarge, w.call(t, "orders", strings.NewReader(strings.Repeat(" ", 1<<20+1))).Code)
	require.Equal(t, http.StatusRequestEntityTooLarge, w.call(t, "orders", io.MultiReader(strings.NewReader(strings.Repeat(" ", 1<<20+1)))).Code, "of unknown length")
	largest := `"` + strings.Repeat("a", 1<<20-2) + `"`
	require.Equal(t, http.StatusOK, w.call(t, "orders", strings.NewReader(largest), signed(largest, "orders/create")...).Code)
	require.Len(t, w.bus.take(), 1)

	// What the bus does not take, or cannot.
	for err, want := range map[error]int{
		errors.New("away"):                503,
		&inbound.AnswerError{Status: 507}: 503,
		&inbound.AnswerError{Status: 403}: 503,
		&inbound.AnswerError{Status: 400}: 400,
	} {
		w.bus.err = err
		answer := w.call(t, "orders", strings.NewReader(order), signed(order, "orders/create")...)
		require.Equal(t, want, answer.Code, err)
		require.Equal(t, want == 503, answer.Header().Get("Retry-After") != "", err)
	}
	seen := w.gateway.TakeActivity()["shop"]["orders"]
	require.EqualValues(t, 1, seen.Events)
	require.EqualValues(t, 11, seen.Refused)
	require.NotEmpty(t, seen.Reason)
	require.Empty(t, w.gateway.TakeActivity())
	for result, want := range map[string]float64{"Stored": 1, "Ignored": 1, "TooLarge": 2, "EventBus": 3, "Malformed": 6} {
		require.Equal(t, want, count(t, w, result), result) //nolint:testifylint // whole numbers
	}
}

// gate is a body that comes when it is opened.
type gate struct{ open chan struct{} }

func (g gate) Read([]byte) (int, error) {
	<-g.open
	return 0, io.EOF
}

func TestOneApplicationHasABoundedShare(t *testing.T) {
	w := start(t, hook("github", "hook"))
	g := gate{make(chan struct{})}
	var begun, ended sync.WaitGroup
	for range 64 {
		begun.Add(1)
		ended.Go(func() {
			w.call(t, "orders", io.MultiReader(began{begun.Done}, g))
		})
	}
	begun.Wait()
	answer := w.call(t, "orders", strings.NewReader(pull))
	require.Equal(t, http.StatusTooManyRequests, answer.Code)
	close(g.open)
	ended.Wait()
	require.Equal(t, http.StatusUnauthorized, w.call(t, "orders", strings.NewReader(pull)).Code, "there is room again")
}

// Who has signed nothing holds the part of the memory of one application and of one
// address, and all of them no more than the whole.
func TestBodiesHaveABoundedShareOfTheMemory(t *testing.T) {
	for name, c := range map[string]struct {
		applications, remotes int
		// who asks then, and the same with one part of it spared
		refused, taken [2]int
	}{
		"one application": {1, 1, [2]int{0, 8}, [2]int{8, 0}},
		"one address":     {4, 1, [2]int{8, 0}, [2]int{8, 8}},
		"all":             {8, 8, [2]int{8, 8}, [2]int{-1, -1}},
	} {
		t.Run(name, func(t *testing.T) {
			w := start(t)
			for i := range 9 {
				require.NoError(t, w.objects.Create(t.Context(), &v1alpha1.Application{
					ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("app", i)},
					Spec:       v1alpha1.ApplicationSpec{Webhooks: []v1alpha1.Webhook{hook("github", "hook")}},
				}))
			}
			call := func(application, remote int, length int64, body io.Reader) int {
				r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "https://hooks.example.com/", body)
				r.ContentLength, r.RemoteAddr = length, fmt.Sprintf("192.0.2.%d:1", remote)
				recorder := httptest.NewRecorder()
				w.gateway.Webhook(recorder, r, fmt.Sprint("app", application), "orders")
				return recorder.Code
			}
			g := gate{make(chan struct{})}
			var begun, ended sync.WaitGroup
			for i := range c.applications * 8 {
				begun.Add(1)
				ended.Go(func() { call(i/8, i%c.remotes, 1<<20, io.MultiReader(began{begun.Done}, g)) })
			}
			begun.Wait()
			small := func(who [2]int) int { return call(who[0], who[1], int64(len(pull)), strings.NewReader(pull)) }
			require.Equal(t, http.StatusServiceUnavailable, small(c.refused))
			require.Equal(t, http.StatusServiceUnavailable, call(c.refused[0], c.refused[1], -1, strings.NewReader(pull)), "of unknown length")
			if c.taken[0] >= 0 {
				require.Equal(t, http.StatusUnauthorized, small(c.taken))
			}
			close(g.open)
			ended.Wait()
			require.Equal(t, http.StatusUnauthorized, small(c.refused), "there is room again")
		})
	}
}

func TestABodyThatDoesNotComeIsWaitedForShortly(t *testing.T) {
	w := start(t, hook("github", "hook"))
	gateway, err := webhooks.New(webhooks.Config{
		Objects: w.objects, Publisher: w.bus, BodyTimeout: 50 * time.Millisecond, Registry: prometheus.NewRegistry(),
	})
	require.NoError(t, err)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { gateway.Webhook(w, r, "shop", "orders") }))
	defer server.Close()
	conn, err := net.Dial("tcp", server.Listener.Addr().String()) //nolint:noctx // a test
	require.NoError(t, err)
	defer conn.Close()
	require.NoError(t, conn.SetDeadline(time.Now().Add(time.Minute)))
	_, err = io.WriteString(conn, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nx")
	require.NoError(t, err)
	answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
	require.NoError(t, err)
	defer answer.Body.Close()
	require.Equal(t, http.StatusRequestTimeout, answer.StatusCode)
}

// began tells that a body is being read.
type began struct{ tell func() }

func (b began) Read([]byte) (int, error) {
	b.tell()
	return 0, io.EOF
}

// Whatever comes: nothing is stored that is not signed, and what is signed is
// stored as it is or refused.
func FuzzCalls(f *testing.F) {
	for _, body := range []string{order, charge, pull, message, changed, cloudEvent, "", "null", "[]", `{"type":{}}`, `{"id":1e999,"type":"a"}`} {
		for provider := range 5 {
			f.Add(uint8(provider), body, "orders/create", true)
		}
	}
	f.Add(uint8(2), charge, "t=1,v1=", false)
	providers := []string{"shopify", "github", "stripe", "commercetools", "hmac"}
	worlds := map[string]*world{}
	for _, provider := range providers {
		h := hook(provider, "hook")
		if provider == "hmac" {
			h.HMAC = &v1alpha1.HMACScheme{Header: "X-Signature", TypePointer: "/type/0", IDPointer: "/id"}
		}
		worlds[provider] = start(f, h)
	}
	f.Fuzz(func(t *testing.T, which uint8, body, text string, signed bool) {
		provider := providers[int(which)%len(providers)]
		w := worlds[provider]
		header := http.Header{}
		seconds := fmt.Sprint(now.Unix())
		sum := hex.EncodeToString(sha("hush", body))
		for name, value := range map[string]string{
			"X-Shopify-Topic": text, "X-Github-Event": text,
			"X-Shopify-Hmac-Sha256": base64.StdEncoding.EncodeToString(sha("hush", body)), "X-Hub-Signature-256": "sha256=" + sum, "X-Signature": sum,
			"Stripe-Signature": "t=" + seconds + ",v1=" + hex.EncodeToString(sha("hush", seconds+"."+body)), "Authorization": "hush",
		} {
			if !signed && !strings.HasSuffix(name, "-Topic") && !strings.HasSuffix(name, "-Event") {
				value = text
			}
			header.Set(name, value)
		}
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "https://hooks.example.com/", strings.NewReader(body))
		r.Header = header
		recorder := httptest.NewRecorder()
		w.gateway.Webhook(recorder, r, "shop", "orders")
		events := w.bus.take()
		switch recorder.Code {
		case http.StatusOK:
			if !signed && (provider != "commercetools" || text != "hush" && text != "before") {
				t.Fatalf("%s took %q with the signature %q", provider, body, text)
			}
			require.Len(t, events, 1)
			require.Regexp(t, `^(orders|shopify|github)/[-A-Za-z0-9._:]+$`, events[0].ID)
			require.LessOrEqual(t, len(events[0].Type), 253)
		case http.StatusBadRequest:
			require.True(t, signed || provider == "commercetools")
			require.Empty(t, events)
		default:
			require.Equal(t, http.StatusUnauthorized, recorder.Code)
			require.False(t, signed)
			require.Empty(t, events)
		}
	})
}
