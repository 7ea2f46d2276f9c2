package install

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// Keys of the Secret with NATS's credentials: what the event bus shows, and
// what nats.conf includes, with the users that NATS lets in. While they are
// replaced there are two of those: the next one, or the last one.
const (
	userKey     = "user"
	passwordKey = "password"
	clientKey   = "client.conf"

	nextPrefix     = "next-"
	previousPrefix = "previous-"
)

// natsUser is the event bus; each time its credentials are replaced it is another
// user, so that NATS knows two of them at a time.
const natsUser = "eventbus"

// credentialsTTL is how old credentials get.
const credentialsTTL = 90 * 24 * time.Hour

// annotationSince says when the credentials became what they are (RFC 3339).
const annotationSince = v1alpha1.Group + "/rotating-since"

// credentials of NATS, the first ones.
func credentials() (map[string][]byte, error) {
	data := map[string][]byte{}
	if err := draw(data, ""); err != nil {
		return nil, err
	}
	users(data)
	return data, nil
}

// draw makes a user and a password under keys with the prefix.
func draw(data map[string][]byte, prefix string) error {
	raw := make([]byte, 36)
	if _, err := rand.Read(raw); err != nil {
		return fmt.Errorf("draw a password: %w", err)
	}
	data[prefix+userKey] = []byte(natsUser + "-" + hex.EncodeToString(raw[:4]))
	data[prefix+passwordKey] = []byte(hex.EncodeToString(raw[4:]))
	return nil
}

// users writes down whom NATS lets in.
func users(data map[string][]byte) {
	var b strings.Builder
	b.WriteString("users: [\n")
	for _, prefix := range []string{"", nextPrefix, previousPrefix} {
		if user := data[prefix+userKey]; len(user) > 0 {
			fmt.Fprintf(&b, "  {user: %q, password: %q}\n", user, data[prefix+passwordKey])
		}
	}
	b.WriteString("]\n")
	data[clientKey] = []byte(b.String())
}

// move renames a user and his password; from one that is not there to nothing.
func move(data map[string][]byte, from, to string) {
	for _, key := range []string{userKey, passwordKey} {
		data[to+key] = data[from+key]
		delete(data, from+key)
	}
}

// restoreCredentials writes a Secret again that somebody has deleted: NATS and the
// event bus know these credentials, and learn of others one after the other.
func (m *maker) restoreCredentials(ctx context.Context) error {
	last := m.credentials
	secret := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: last.Namespace, Name: last.Name, Labels: labels()},
		Type:       last.Type, Data: last.Data,
	}
	since := last.Annotations[annotationSince]
	if since == "" {
		since = last.CreationTimestamp.UTC().Format(time.RFC3339)
	}
	metav1.SetMetaDataAnnotation(&secret.ObjectMeta, annotationSince, since)
	if err := sign(secret, secret.Data); err != nil {
		return err
	}
	if err := m.client.Create(ctx, secret); err != nil {
		return fmt.Errorf("write Secret %s again: %w", secret.Name, err)
	}
	m.credentials = secret
	m.say(secret, "Restored", "deleted, and written again as it was: NATS and the event bus know these credentials; the annotation "+v1alpha1.AnnotationRotate+" has others made")
	return nil
}

// rotateCredentials takes the step of replacing the credentials that is due, if one
// is, and returns when to look again: NATS is told of the next user; the event bus
// becomes that user; the last one is forgotten. Each lasts as long as it takes until
// all servers and all of the event bus have seen the Secret.
func (m *maker) rotateCredentials(ctx context.Context, secret *corev1.Secret) (time.Duration, error) {
	now := m.config.Now()
	since, err := time.Parse(time.RFC3339, secret.Annotations[annotationSince])
	if err != nil {
		since = secret.CreationTimestamp.Time
	}
	_, asked := secret.Annotations[v1alpha1.AnnotationRotate]
	data, done := secret.Data, ""
	next, previous := len(data[nextPrefix+userKey]) > 0, len(data[previousPrefix+userKey]) > 0
	due := since.Add(m.config.Overlap)
	switch {
	case next && !now.Before(due):
		move(data, "", previousPrefix)
		move(data, nextPrefix, "")
		done = "the event bus takes the next credentials, NATS still takes the last ones"
	case previous && !now.Before(due):
		delete(data, previousPrefix+userKey)
		delete(data, previousPrefix+passwordKey)
		done = "the last credentials are forgotten"
	case next, previous:
	case asked, !now.Before(since.Add(credentialsTTL)):
		if err := draw(data, nextPrefix); err != nil {
			return 0, err
		}
		done = "NATS is told of the next credentials"
	default:
		due = since.Add(credentialsTTL)
	}
	if done == "" && !asked {
		return due.Sub(now), nil
	}
	if done != "" {
		metav1.SetMetaDataAnnotation(&secret.ObjectMeta, annotationSince, now.UTC().Format(time.RFC3339))
		due = now.Add(m.config.Overlap)
	}
	users(data)
	if err := m.renew(ctx, secret); err != nil {
		return 0, err
	}
	if done != "" {
		m.say(secret, "Rotation", done)
	}
	return due.Sub(now), nil
}
