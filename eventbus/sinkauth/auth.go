package sinkauth

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"maps"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/lambdamesh/lambdamesh/pkg/accesstokens"
)

// Headers of Standard Webhooks 1.0, section "Webhook headers".
const (
	headerID        = "Webhook-Id"
	headerTimestamp = "Webhook-Timestamp"
	headerSignature = "Webhook-Signature"
)

// Auth of one sink.
type Auth struct {
	keys   [][]byte             // of signatures
	client *accesstokens.Client // nil without
	tokens *accesstokens.Cache
	basic  *basic      // nil without
	header http.Header // added to each request
	certified
}

type basic struct{ username, password string }

// certified is what a certificate takes; nothing without one.
type certified struct {
	transport http.RoundTripper
	closeIdle func()
}

// String tells nothing.
func (a *Auth) String() string { return "sinkauth" }

// GoString is for %#v.
func (a *Auth) GoString() string { return a.String() }

// Transport carries the requests; nil: any does.
func (a *Auth) Transport() http.RoundTripper { return a.transport }

// Authorize adds to a request what its sink asks for. message names what is sent,
// and is the same in each attempt to send it. It fails when no access token is to be
// had, or not in the time of the request's context.
func (a *Auth) Authorize(r *http.Request, message string, body []byte) error {
	maps.Copy(r.Header, a.header)
	switch {
	case len(a.keys) > 0:
		a.sign(r.Header, message, body, time.Now())
	case a.basic != nil:
		r.SetBasicAuth(a.basic.username, a.basic.password)
	case a.client != nil:
		token, _, err := a.tokens.Get(r.Context(), *a.client)
		if err != nil {
			return err
		}
		r.Header.Set("Authorization", bearer+token)
	}
	return nil
}

const bearer = "Bearer "

// Answered takes notice of the answer to an authorized request: a token that was
// refused (RFC 6750, section 3.1) is not shown again.
func (a *Auth) Answered(r *http.Request, status int) {
	if a.client == nil || status != http.StatusUnauthorized {
		return
	}
	a.tokens.Drop(*a.client, strings.TrimPrefix(r.Header.Get("Authorization"), bearer))
}

// sign adds a signature by each key (Standard Webhooks 1.0, section "Signature
// scheme").
func (a *Auth) sign(header http.Header, message string, body []byte, at time.Time) {
	timestamp := strconv.FormatInt(at.Unix(), 10)
	signatures := make([]string, len(a.keys))
	for i, key := range a.keys {
		h := hmac.New(sha256.New, key)
		_, _ = h.Write([]byte(message + "." + timestamp + "."))
		_, _ = h.Write(body)
		signatures[i] = "v1," + base64.StdEncoding.EncodeToString(h.Sum(nil))
	}
	header.Set(headerID, message)
	header.Set(headerTimestamp, timestamp)
	header.Set(headerSignature, strings.Join(signatures, " "))
}
