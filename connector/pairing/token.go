package pairing

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"net/url"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

// TokenLife is how long a token can be used.
const TokenLife = 5 * time.Minute

// maxToken bounds what is taken for a token: the names of a namespace and an
// object, and the secret.
const maxToken = 512

// InfoPath is where who has a token begins.
const InfoPath = "/v1/applications/signingRequests/info"

// NewToken makes the token of a TokenRequest: where that is, and 256 random bits.
func NewToken(of types.NamespacedName) string {
	var secret [32]byte
	_, _ = rand.Read(secret[:]) // never fails, see its doc
	return of.Namespace + "." + of.Name + "." + base64.RawURLEncoding.EncodeToString(secret[:])
}

// TokenHash is what is kept of a token. The token is random: no salt is needed.
func TokenHash(token string) string {
	sum := sha256.Sum256([]byte(token))
	return hex.EncodeToString(sum[:])
}

// InfoURL is where who has the token begins, below the connector's public URL.
func InfoURL(public, token string) string { return withToken(public+InfoPath, token) }

func withToken(to, token string) string { return to + "?token=" + url.QueryEscape(token) }

// requestOf is the TokenRequest that a token says it is of.
func requestOf(token string) (types.NamespacedName, bool) {
	first, last := strings.IndexByte(token, '.'), strings.LastIndexByte(token, '.')
	if len(token) > maxToken || first <= 0 || last <= first+1 || last == len(token)-1 {
		return types.NamespacedName{}, false
	}
	return types.NamespacedName{Namespace: token[:first], Name: token[first+1 : last]}, true
}

func sameHash(a, b string) bool {
	return a != "" && subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1
}
