package shop

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// tokenLife of an access token.
const tokenLife = 5 * time.Minute

// Credentials with which the APIs are called.
type Credentials struct {
	ClientID, ClientSecret string // OAuth2
	Username, Password     string // OData
}

// KeptCredentials are those in a directory; where there are none they are made.
func KeptCredentials(dir string) (Credentials, error) {
	path := filepath.Join(dir, "credentials.json")
	var c Credentials
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		c = Credentials{ClientID: "lambdamesh", ClientSecret: rand.Text(), Username: "lambdamesh", Password: rand.Text()}
		if raw, err = json.Marshal(c); err == nil { //nolint:gosec // this file is where they are kept
			err = os.WriteFile(path, raw, 0o600)
		}
	} else if err == nil {
		err = json.Unmarshal(raw, &c)
	}
	if err == nil && (c.ClientSecret == "" || c.Password == "") {
		err = errors.New("a secret is empty: remove the file")
	}
	if err != nil {
		return c, fmt.Errorf("the credentials in %s: %w", path, err)
	}
	return c, nil
}

func equal(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }

// token is the client credentials grant (RFC 6749, section 4.4). The token says
// when it ends, and is signed.
func (s *Shop) token(w http.ResponseWriter, r *http.Request) {
	id, secret, basic := r.BasicAuth()
	if !basic { // RFC 6749, section 2.3.1: in the body
		id, secret = r.PostFormValue("client_id"), r.PostFormValue("client_secret")
	}
	switch c := s.config.Credentials; {
	case !equal(id, c.ClientID) || !equal(secret, c.ClientSecret):
		refuse(w, http.StatusUnauthorized, "invalid_client")
	case r.PostFormValue("grant_type") != "client_credentials":
		refuse(w, http.StatusBadRequest, "unsupported_grant_type")
	default:
		end := strconv.FormatInt(time.Now().Add(tokenLife).Unix(), 10)
		w.Header().Set("Cache-Control", "no-store")
		answer(w, http.StatusOK, map[string]any{
			"access_token": end + "." + s.sign("access", end), "token_type": "Bearer", "expires_in": int(tokenLife.Seconds()),
		})
	}
}

// sign a text, as one of a kind.
func (s *Shop) sign(kind, text string) string {
	mac := hmac.New(sha256.New, s.signing[:])
	mac.Write([]byte(kind + "\x00" + text))
	return hex.EncodeToString(mac.Sum(nil))
}

// withToken lets in who shows an access token (RFC 6750).
func (s *Shop) withToken(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		bearer, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		end, signature, _ := strings.Cut(bearer, ".")
		until, err := strconv.ParseInt(end, 10, 64)
		if err != nil || !equal(signature, s.sign("access", end)) || time.Now().Unix() >= until {
			w.Header().Set("WWW-Authenticate", `Bearer error="invalid_token"`)
			refuse(w, http.StatusUnauthorized, "get a token at /oauth/token")
			return
		}
		next(w, r)
	}
}
