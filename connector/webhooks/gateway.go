package webhooks

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/connector/inbound"
	"github.com/lambdamesh/lambdamesh/connector/public"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

const (
	// maxAtOnce of an application, so that one leaves room for others.
	maxAtOnce = 64
	// timeout of a call: the bus has its own, which is shorter. Providers wait 5 to
	// 30 seconds.
	timeout = 25 * time.Second
	// bodyTimeout is the default of [Config.BodyTimeout]: until then a call holds the
	// memory of its body, whoever sends it.
	bodyTimeout = 10 * time.Second
	// retryAfter is when who is told to come again should, in seconds.
	retryAfter = "5"
)

// Keys of the Secret of a webhook.
const (
	keySecret   = "secret"
	keyPrevious = "previous"
)

// Reasons for which a call is refused, in metrics and in the status.
const (
	reasonSignature = "Signature"
	reasonStale     = "Stale"
	reasonNoSecret  = "NoSecret"
	reasonMalformed = "Malformed"
	reasonTooLarge  = "TooLarge"
	reasonTooMany   = "TooMany"
	reasonEventBus  = "EventBus"
)

// Results of calls that are not refused.
const (
	resultStored  = "Stored"
	resultIgnored = "Ignored"
)

// Publisher stores events of an application in the event bus.
type Publisher interface {
	// Publish returns when the event is stored. See [inbound.Gateway.Publish].
	Publish(ctx context.Context, application string, event *inbound.Event) error
}

// Config of a [Gateway]. Objects, Publisher and Registry are required.
type Config struct {
	// Objects are Applications and the Secrets of the system namespace.
	Objects client.Reader
	// Publisher of the events.
	Publisher Publisher
	// BodyTimeout is how long a call's body may take to come; default 10s.
	BodyTimeout time.Duration
	// Now tells the time; default time.Now.
	Now func() time.Time
	// Log of what callers are not told; default none.
	Log *slog.Logger
	// Registry of the metrics.
	Registry prometheus.Registerer
}

// Gateway implements [public.Webhooks].
type Gateway struct {
	config Config
	memory *memory
	calls  *prometheus.CounterVec

	mu     sync.Mutex
	atOnce map[string]int // calls of applications
	seen   map[string]map[string]*Activity
}

// New makes a gateway.
func New(config Config) (*Gateway, error) {
	if config.BodyTimeout == 0 {
		config.BodyTimeout = bodyTimeout
	}
	if config.Now == nil {
		config.Now = time.Now
	}
	if config.Log == nil {
		config.Log = slog.New(slog.DiscardHandler)
	}
	g := &Gateway{
		config: config, memory: newMemory(), atOnce: map[string]int{}, seen: map[string]map[string]*Activity{},
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "lambdamesh_connector_webhook_calls_total",
			Help: "Calls of webhooks by application, webhook and result: Stored, Ignored (not one of its types), or why it was refused.",
		}, []string{"application", "webhook", "result"}),
	}
	if err := config.Registry.Register(g.calls); err != nil {
		return nil, fmt.Errorf("webhooks: %w", err)
	}
	return g, nil
}

// refusal is why a call is refused, and what the caller is told.
type refusal struct {
	reason string
	status int
	told   string
	err    error // for the log
}

func refused(reason string, status int, told string, err error) *refusal {
	return &refusal{reason, status, told, err}
}

// Webhook implements [public.Webhooks].
func (g *Gateway) Webhook(w http.ResponseWriter, r *http.Request, application, name string) {
	hook, err := g.hook(r.Context(), application, name)
	if err != nil {
		g.config.Log.Warn("a webhook cannot be looked up", "application", application, "webhook", name, "error", err)
		w.Header().Set("Retry-After", retryAfter)
		public.Refuse(w, http.StatusServiceUnavailable, "try again")
		return
	}
	if hook == nil {
		w.Header().Set("Connection", "close") // the body is not read
		public.Refuse(w, http.StatusNotFound, "there is no such webhook")
		return
	}
	result := resultStored
	switch stored, refusal := g.take(w, r, application, hook); {
	case refusal != nil:
		result = refusal.reason
		g.config.Log.Debug("a call of a webhook was refused", "application", application, "webhook", name, "reason", refusal.reason, "error", refusal.err)
		if refusal.status == http.StatusTooManyRequests || refusal.status == http.StatusServiceUnavailable {
			w.Header().Set("Retry-After", retryAfter)
		}
		public.Refuse(w, refusal.status, "%s", refusal.told)
	default:
		if !stored {
			result = resultIgnored
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		// A caller that went away cannot be told.
		_ = json.NewEncoder(w).Encode(struct {
			Stored bool `json:"stored"`
		}{stored})
	}
	g.calls.WithLabelValues(application, name, result).Inc()
	g.note(application, name, result)
}

// hook finds a webhook; nil: there is none.
func (g *Gateway) hook(ctx context.Context, application, name string) (*v1alpha1.Webhook, error) {
	var app v1alpha1.Application
	err := g.config.Objects.Get(ctx, client.ObjectKey{Name: application}, &app, client.UnsafeDisableDeepCopy)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read Application %s: %w", application, err)
	}
	for i := range app.Spec.Webhooks {
		if app.Spec.Webhooks[i].Name == name && app.DeletionTimestamp.IsZero() {
			return &app.Spec.Webhooks[i], nil
		}
	}
	return nil, nil
}

// take stores the event of a call; false: the webhook does not take its type.
func (g *Gateway) take(w http.ResponseWriter, r *http.Request, application string, hook *v1alpha1.Webhook) (bool, *refusal) {
	if !g.enter(application) {
		w.Header().Set("Connection", "close")
		return false, refused(reasonTooMany, http.StatusTooManyRequests, "too many calls at once: try again", nil)
	}
	defer g.leave(application)
	ctx, cancel := context.WithTimeout(r.Context(), timeout)
	defer cancel()
	secrets, err := g.secrets(ctx, hook)
	if err != nil {
		w.Header().Set("Connection", "close")
		return false, refused(reasonNoSecret, http.StatusServiceUnavailable, "this webhook cannot be used at the moment", err)
	}
	body, release, refusal := g.body(w, r, application)
	if refusal != nil {
		w.Header().Set("Connection", "close")
		return false, refusal
	}
	defer release()
	c := &call{hook: hook, header: r.Header, body: body}
	if err := verify(c, secrets, g.config.Now()); err != nil {
		reason := reasonSignature
		if errors.Is(err, errStale) {
			reason = reasonStale
		}
		return false, refused(reason, http.StatusUnauthorized, "unauthorized", err)
	}
	d, err := read(c)
	if err != nil {
		return false, refused(reasonMalformed, http.StatusBadRequest, err.Error(), err)
	}
	if !d.taken(hook) {
		return false, nil
	}
	if err := g.config.Publisher.Publish(ctx, application, d.event(hook, body)); err != nil {
		if answer, ok := errors.AsType[*inbound.AnswerError](err); ok && answer.Permanent() {
			return false, refused(reasonMalformed, answer.Status, "the event bus does not take this event", err)
		}
		return false, refused(reasonEventBus, http.StatusServiceUnavailable, "try again: a call that is repeated is stored once", err)
	}
	return true, nil
}

// secrets are the current secret of a webhook, and the one before it while both
// are good.
func (g *Gateway) secrets(ctx context.Context, hook *v1alpha1.Webhook) ([][]byte, error) {
	return Secrets(ctx, g.config.Objects, hook)
}

// Secrets reads what a webhook is signed with: one secret, or two while it is
// being replaced. The error says what is missing.
func Secrets(ctx context.Context, objects client.Reader, hook *v1alpha1.Webhook) ([][]byte, error) {
	var secret corev1.Secret
	err := objects.Get(ctx, client.ObjectKey{Namespace: v1alpha1.SystemNamespace, Name: hook.SecretName}, &secret)
	if err != nil {
		return nil, fmt.Errorf("read Secret %s/%s: %w", v1alpha1.SystemNamespace, hook.SecretName, err)
	}
	var all [][]byte
	for _, key := range []string{keySecret, keyPrevious} {
		// An editor, or kubectl of a file, ends what it writes with a line break. With
		// an empty key anybody could sign.
		if value := bytes.TrimRight(secret.Data[key], "\r\n"); len(value) > 0 {
			all = append(all, value)
		} else if key == keySecret {
			return nil, fmt.Errorf("%w: Secret %s/%s has no key %s", ErrNoKey, v1alpha1.SystemNamespace, hook.SecretName, keySecret)
		}
	}
	return all, nil
}

// ErrNoKey: the Secret of a webhook does not hold its secret.
var ErrNoKey = errors.New("no secret")

func (g *Gateway) enter(application string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.atOnce[application] >= maxAtOnce {
		return false
	}
	g.atOnce[application]++
	return true
}

func (g *Gateway) leave(application string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.atOnce[application]--; g.atOnce[application] == 0 {
		delete(g.atOnce, application)
	}
}
