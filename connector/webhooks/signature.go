package webhooks

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"hash"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// tolerance is how far the time of a signature may be from ours: what Stripe and
// Standard Webhooks recommend.
const tolerance = 5 * time.Minute

// maxSignatures of one request: a provider that replaces its secret sends two.
const maxSignatures = 8

// Why a request is refused; the caller is not told which.
var (
	errSignature = errors.New("the signature is missing or wrong")
	errStale     = errors.New("it was signed too long ago, or in the future")
)

// call is a request whose body was read.
type call struct {
	hook   *v1alpha1.Webhook
	header http.Header
	body   []byte
}

// only returns the value of a header that is given once.
func (c *call) only(name string) (string, bool) {
	values := c.header.Values(name)
	if len(values) != 1 || values[0] == "" {
		return "", false
	}
	return values[0], true
}

// verify tells whether a call was signed with one of the secrets, and lately where
// the scheme says when.
func verify(c *call, secrets [][]byte, now time.Time) error {
	var given [][]byte
	var signed func(secret []byte) []byte
	var at string
	var ok bool
	switch c.hook.Provider {
	case "shopify":
		// https://shopify.dev/docs/apps/build/webhooks/subscribe/https#step-2-validate-the-origin-of-your-webhook-to-ensure-its-coming-from-shopify
		given, ok = c.signatures("X-Shopify-Hmac-Sha256", "", base64.StdEncoding.DecodeString)
		signed = mac(sha256.New, c.body)
	case "github":
		// https://docs.github.com/en/webhooks/using-webhooks/validating-webhook-deliveries
		given, ok = c.signatures("X-Hub-Signature-256", "sha256=", hex.DecodeString)
		signed = mac(sha256.New, c.body)
	case "stripe":
		// https://docs.stripe.com/webhooks#verify-manually
		at, given, ok = stripe(c)
		signed = mac(sha256.New, []byte(at+"."), c.body)
	case "commercetools":
		// The destinations of commercetools call with a constant header:
		// https://docs.commercetools.com/api/projects/api-extensions#authorizationheaderauthentication.
		// Hashed, so that comparing takes the same time for every length.
		var value string
		value, ok = c.only("Authorization")
		given, signed = [][]byte{digest([]byte(value))}, digest
	default:
		if c.hook.HMAC == nil {
			at, given, signed, ok = standard(c)
		} else {
			at, given, signed, ok = custom(c, c.hook.HMAC)
		}
	}
	if !ok || !matches(given, signed, secrets) {
		return errSignature
	}
	if at == "" {
		return nil
	}
	seconds, err := strconv.ParseInt(at, 10, 64)
	if err != nil {
		return errSignature
	}
	if off := now.Sub(time.Unix(seconds, 0)); off > tolerance || off < -tolerance {
		return errStale
	}
	return nil
}

// matches compares in a time that does not tell how much of a signature is right.
func matches(given [][]byte, signed func([]byte) []byte, secrets [][]byte) bool {
	found := false
	for _, secret := range secrets {
		want := signed(secret)
		for _, signature := range given {
			found = hmac.Equal(signature, want) || found
		}
	}
	return found
}

func mac(algorithm func() hash.Hash, parts ...[]byte) func([]byte) []byte {
	return func(secret []byte) []byte {
		h := hmac.New(algorithm, secret)
		for _, part := range parts {
			h.Write(part)
		}
		return h.Sum(nil)
	}
}

func digest(text []byte) []byte {
	sum := sha256.Sum256(text)
	return sum[:]
}

// signatures is the one of a header that holds one.
func (c *call) signatures(header, prefix string, decode func(string) ([]byte, error)) ([][]byte, bool) {
	value, ok := c.only(header)
	if !ok {
		return nil, false
	}
	text, ok := strings.CutPrefix(value, prefix)
	if !ok {
		return nil, false
	}
	signature, err := decode(text)
	return [][]byte{signature}, err == nil && len(signature) > 0
}

// stripe reads t=<seconds>,v1=<hexadecimal>[,v1=...]; other schemes in it, such as
// v0, are not for us.
func stripe(c *call) (at string, given [][]byte, ok bool) {
	value, ok := c.only("Stripe-Signature")
	if !ok || strings.Count(value, ",") >= 2*maxSignatures {
		return "", nil, false
	}
	for part := range strings.SplitSeq(value, ",") {
		name, text, _ := strings.Cut(strings.TrimSpace(part), "=")
		switch name {
		case "t":
			if at != "" {
				return "", nil, false
			}
			at = text
		case "v1":
			if signature, err := hex.DecodeString(text); err == nil {
				given = append(given, signature)
			}
		}
	}
	return at, given, at != "" && len(given) > 0
}

// standard is https://www.standardwebhooks.com: the base64 of the HMAC of
// <id>.<timestamp>.<body>, several of them with blanks in between.
func standard(c *call) (at string, given [][]byte, signed func([]byte) []byte, ok bool) {
	id, ok := c.only("Webhook-Id")
	at, ok2 := c.only("Webhook-Timestamp")
	value, ok3 := c.only("Webhook-Signature")
	if !ok || !ok2 || !ok3 || strings.Count(value, " ") >= maxSignatures {
		return "", nil, nil, false
	}
	for part := range strings.SplitSeq(value, " ") {
		text, isV1 := strings.CutPrefix(part, "v1,")
		if signature, err := base64.StdEncoding.DecodeString(text); isV1 && err == nil {
			given = append(given, signature)
		}
	}
	sum := mac(sha256.New, []byte(id+"."+at+"."), c.body)
	return at, given, func(secret []byte) []byte { return sum(standardKey(secret)) }, len(given) > 0
}

// standardKey is the key that a secret stands for: whsec_<base64>, or itself.
func standardKey(secret []byte) []byte {
	encoded, ok := bytes.CutPrefix(secret, []byte("whsec_"))
	if !ok {
		return secret
	}
	key, err := base64.StdEncoding.DecodeString(string(encoded))
	if err != nil || len(key) == 0 {
		return secret
	}
	return key
}

func custom(c *call, scheme *v1alpha1.HMACScheme) (at string, given [][]byte, signed func([]byte) []byte, ok bool) {
	decode, algorithm := hex.DecodeString, sha256.New
	if scheme.Encoding == v1alpha1.EncodingBase64 {
		decode = base64.StdEncoding.DecodeString
	}
	if scheme.Algorithm == v1alpha1.AlgorithmSHA512 {
		algorithm = sha512.New
	}
	if given, ok = c.signatures(scheme.Header, scheme.Prefix, decode); !ok {
		return "", nil, nil, false
	}
	if scheme.TimestampHeader == "" {
		return "", given, mac(algorithm, c.body), true
	}
	at, ok = c.only(scheme.TimestampHeader)
	return at, given, mac(algorithm, []byte(at+"."), c.body), ok
}
