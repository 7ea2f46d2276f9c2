package sinkauth

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"

	"golang.org/x/net/http/httpguts"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/pkg/accesstokens"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/targets"
)

// Reasons why a sink's auth cannot be used, besides those of pkg/apis.
const (
	// ReasonSecretNotFound: a Secret that is named does not exist.
	ReasonSecretNotFound = "SecretNotFound"
	// ReasonSecretInvalid: it lacks a key, or its value is of no use.
	ReasonSecretInvalid = "SecretInvalid"
	// ReasonSecretNotPermitted: its namespace has not lent it to the event bus.
	ReasonSecretNotPermitted = "SecretNotPermitted"
)

// minKey and maxKey bound the bytes of a key that signs (Standard Webhooks 1.0,
// section "Signature scheme").
const (
	minKey = 24
	maxKey = 64
)

// UnusableError says why a sink's auth cannot be used and what to do about it. It
// names Secrets and keys, never values.
type UnusableError struct{ Reason, Message string }

// Error implements error.
func (e *UnusableError) Error() string { return e.Message }

func unusable(reason, format string, args ...any) error {
	return &UnusableError{Reason: reason, Message: fmt.Sprintf(format, args...)}
}

// Config of a [Resolver]. All is required.
type Config struct {
	// Secrets are read by name, uncached: nothing but what is named is asked for.
	Secrets client.Reader
	// Targets decides which token URLs may be called.
	Targets *targets.Policy
	// Dial carries requests to token URLs and those that show a certificate, see
	// [targets.ClientOptions]; nil: the policy's own.
	Dial targets.DialFunc
}

// Resolver makes Auths, and keeps one for each sink until what it was made of
// changes.
type Resolver struct {
	config Config
	tokens *accesstokens.Cache
	// asking reaches token URLs.
	asking *targets.Transport

	mu    sync.Mutex
	known map[string]kept // by sink
}

type kept struct {
	madeOf string
	auth   *Auth
}

// New makes a resolver.
func New(config Config) *Resolver {
	return &Resolver{
		config: config, tokens: accesstokens.New(),
		asking: config.Targets.Transport(targets.ClientOptions{Dial: config.Dial}),
		known:  map[string]kept{},
	}
}

// Resolve makes the Auth of a sink, which any name may stand for, from Secrets of a
// namespace; the same one again while nothing has changed. The error is an
// [*UnusableError] when the object or a Secret has to change.
func (r *Resolver) Resolve(ctx context.Context, sink, namespace string, auth *v1alpha1.SinkAuth) (*Auth, error) {
	read := reading{ctx: ctx, from: r.config.Secrets, namespace: namespace}
	made := r.make(&read, auth)
	if read.err != nil {
		return nil, read.err
	}
	spec, err := json.Marshal(auth)
	if err != nil {
		return nil, fmt.Errorf("sink auth: %w", err)
	}
	madeOf := strings.Join(append(read.versions, string(spec)), " ")
	r.mu.Lock()
	defer r.mu.Unlock()
	before := r.known[sink]
	if before.madeOf == madeOf {
		return before.auth, nil
	}
	if before.auth != nil && before.auth.closeIdle != nil {
		before.auth.closeIdle()
	}
	if made.certificate != nil {
		transport := r.config.Targets.Transport(targets.ClientOptions{Dial: r.config.Dial, TLS: made.certificate})
		made.auth.certified = certified{transport: transport, closeIdle: transport.CloseIdleConnections}
	}
	r.known[sink] = kept{madeOf: madeOf, auth: made.auth}
	return made.auth, nil
}

// Forget drops what is kept for a sink.
func (r *Resolver) Forget(sink string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if before := r.known[sink].auth; before != nil && before.closeIdle != nil {
		before.closeIdle()
	}
	delete(r.known, sink)
}

type made struct {
	auth        *Auth
	certificate *tls.Config
}

func (r *Resolver) make(read *reading, auth *v1alpha1.SinkAuth) (m made) {
	m.auth = &Auth{header: http.Header{}, tokens: r.tokens}
	switch {
	case auth.Signing != nil:
		for _, s := range auth.Signing.Secrets {
			key := s.Key
			if key == "" { // stored before there was a default
				key = "secret"
			}
			m.auth.keys = append(m.auth.keys, read.signingKey(s.Name, key))
		}
	case auth.OAuth2 != nil:
		m.auth.client = r.client(read, auth.OAuth2)
	case auth.Basic != nil:
		values := read.keys(auth.Basic.Secret.Name, "username", "password")
		if strings.Contains(values[0], ":") {
			read.fail(ReasonSecretInvalid, "Secret %s: a username with a colon cannot be sent (RFC 7617)", auth.Basic.Secret.Name)
		}
		m.auth.basic = &basic{username: values[0], password: values[1]}
	case auth.MTLS != nil:
		m.certificate = read.certificate(auth.MTLS.Secret.Name)
	}
	for _, h := range auth.Headers {
		value := h.Value
		if h.Secret != nil {
			value = read.keys(h.Secret.Name, h.Secret.Key)[0]
		}
		if !httpguts.ValidHeaderFieldValue(value) {
			read.fail(ReasonSecretInvalid, "auth.headers: the value of %s cannot be sent in a header", h.Name)
		}
		m.auth.header.Set(h.Name, value)
	}
	return m
}

func (r *Resolver) client(read *reading, auth *v1alpha1.SinkOAuth2) *accesstokens.Client {
	if err := r.config.Targets.CheckURL(auth.TokenURL); err != nil {
		read.fail(v1alpha1.ReasonTargetRefused, "auth.oauth2.tokenUrl %v", err)
	} else if service, inCluster := v1alpha1.ParseServiceURI(auth.TokenURL); inCluster && service.Qualified {
		read.fail(v1alpha1.ReasonTargetRefused, "auth.oauth2.tokenUrl is refused: it names a Service of the cluster, and tokens come from outside of it")
	}
	values := read.keys(auth.Secret.Name, "clientId", "clientSecret")
	return &accesstokens.Client{
		TokenURL: auth.TokenURL, ID: values[0], Secret: values[1], Version: strings.Join(read.versions, " "),
		Scopes: strings.Join(auth.Scopes, " "), Audience: auth.Audience, InParams: auth.AuthStyle == "params",
		Via: r.asking,
	}
}

// reading of the Secrets of a namespace. The first error stays.
type reading struct {
	ctx       context.Context //nolint:containedctx // of the one call that it belongs to
	from      client.Reader
	namespace string
	versions  []string // of what was read
	err       error
}

func (r *reading) fail(reason, format string, args ...any) {
	if r.err == nil {
		r.err = unusable(reason, format, args...)
	}
}

func (r *reading) secret(name string) *corev1.Secret {
	var secret corev1.Secret
	if r.err != nil {
		return &secret
	}
	err := r.from.Get(r.ctx, client.ObjectKey{Namespace: r.namespace, Name: name}, &secret)
	switch {
	case apierrors.IsNotFound(err):
		r.fail(ReasonSecretNotFound, "there is no Secret %s in namespace %s", name, r.namespace)
	case apierrors.IsForbidden(err):
		r.fail(ReasonSecretNotPermitted, "the event bus may not read Secret %[1]s: lend it by `kubectl -n %[2]s create role eventbus-%[1]s --verb=get --resource=secrets --resource-name=%[1]s` and "+
			"`kubectl -n %[2]s create rolebinding eventbus-%[1]s --role=eventbus-%[1]s --serviceaccount=%[3]s:eventbus`", name, r.namespace, v1alpha1.SystemNamespace)
	case err != nil:
		r.err = fmt.Errorf("read Secret %s/%s: %w", r.namespace, name, err)
	}
	r.versions = append(r.versions, string(secret.UID)+"/"+secret.ResourceVersion)
	return &secret
}

// keys returns values of a Secret, without the line end that editors and echo leave
// there; as many as are asked for, empty after an error.
func (r *reading) keys(name string, keys ...string) []string {
	secret := r.secret(name)
	values := make([]string, len(keys))
	for i, key := range keys {
		if values[i] = strings.TrimRight(string(secret.Data[key]), "\r\n"); values[i] == "" {
			r.fail(ReasonSecretInvalid, "Secret %s has no key %s, or it is empty", name, key)
		}
	}
	return values
}

func (r *reading) signingKey(name, key string) []byte {
	text := r.keys(name, key)[0]
	decoded, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(text, "whsec_"))
	if err != nil || len(decoded) < minKey || len(decoded) > maxKey {
		r.fail(ReasonSecretInvalid, "Secret %s: %s must be %d to %d random bytes in base64, such as what `echo whsec_$(openssl rand -base64 32)` writes", name, key, minKey, maxKey)
	}
	return decoded
}

func (r *reading) certificate(name string) *tls.Config {
	secret := r.secret(name)
	if r.err != nil {
		return nil
	}
	pair, err := tls.X509KeyPair(secret.Data[corev1.TLSCertKey], secret.Data[corev1.TLSPrivateKeyKey])
	if err != nil { // whose text may quote what is there
		r.fail(ReasonSecretInvalid, "Secret %s: tls.crt and tls.key are no PEM certificate and its key", name)
		return nil
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}}
	if pem := secret.Data[corev1.ServiceAccountRootCAKey]; len(pem) > 0 {
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			r.fail(ReasonSecretInvalid, "Secret %s: ca.crt holds no PEM certificate", name)
		}
	}
	return config
}

// IsUnusable returns the [*UnusableError] of an error, if it is one.
func IsUnusable(err error) (*UnusableError, bool) { return errors.AsType[*UnusableError](err) }
