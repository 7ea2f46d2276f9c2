package webhook

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	mathrand "math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

const (
	// SecretFile in the directory of a sender: what calls are signed with, for the
	// receiver.
	SecretFile = "webhook.secret"
	// maxWaiting calls; who has more to tell is refused.
	maxWaiting = 1000
	// Pauses between the attempts of a call double from the first to the longest.
	firstPause, longestPause = time.Second, time.Minute
	// maxAttempts of a call: most of half an hour.
	maxAttempts = 30
	callTimeout = 15 * time.Second
)

// Config of a [Sender].
type Config struct {
	// URL that is called. Required.
	URL string
	// CA verifies it (PEM); empty: the authorities of this machine do.
	CA []byte
	// Dir keeps the secret. It is made where there is none. Required.
	Dir string
	// FirstPause after a failed attempt; default a second.
	FirstPause time.Duration
	// Log gets a line for each call that was not taken. Required.
	Log func(format string, args ...any)
}

// Sender makes calls one after another, in the order in which they are told.
type Sender struct {
	config  Config
	key     []byte
	client  *http.Client
	waiting chan call
}

type call struct {
	id   string
	body []byte
}

// NewSender makes a sender. Nothing is sent before Run.
func NewSender(config Config) (*Sender, error) {
	if config.FirstPause <= 0 {
		config.FirstPause = firstPause
	}
	settings := &tls.Config{MinVersion: tls.VersionTLS12}
	if len(config.CA) > 0 {
		settings.RootCAs = x509.NewCertPool()
		if !settings.RootCAs.AppendCertsFromPEM(config.CA) {
			return nil, errors.New("what verifies the webhook's receiver holds no certificate (PEM)")
		}
	}
	key, err := keptKey(filepath.Join(config.Dir, SecretFile))
	if err != nil {
		return nil, fmt.Errorf("the secret of the webhook: %w", err)
	}
	return &Sender{
		config: config, key: key, waiting: make(chan call, maxWaiting),
		client: &http.Client{Timeout: callTimeout, Transport: &http.Transport{TLSClientConfig: settings}},
	}, nil
}

// keptKey reads the secret, whsec_<base64 of the key>, or makes it.
func keptKey(path string) ([]byte, error) {
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		var key [32]byte
		_, _ = rand.Read(key[:]) // never fails, see its doc
		return key[:], os.WriteFile(path, []byte("whsec_"+base64.StdEncoding.EncodeToString(key[:])+"\n"), 0o600)
	}
	if err != nil {
		return nil, err
	}
	encoded, ok := strings.CutPrefix(strings.TrimSpace(string(raw)), "whsec_")
	key, err := base64.StdEncoding.DecodeString(encoded)
	if !ok || err != nil || len(key) < 24 {
		return nil, fmt.Errorf("%s does not hold whsec_<base64 of 24 bytes or more>: remove it, and another is made", path)
	}
	return key, nil
}

// Send has a call made that tells data of a type. It returns at once; an error
// when too many calls wait.
func (s *Sender) Send(eventType string, data any) error {
	body, err := json.Marshal(map[string]any{"type": eventType, "timestamp": time.Now().UTC().Format(time.RFC3339), "data": data})
	if err != nil {
		return fmt.Errorf("encode the webhook: %w", err)
	}
	select {
	case s.waiting <- call{id: "msg_" + rand.Text(), body: body}:
		return nil
	default:
		return fmt.Errorf("%d webhooks wait to be taken: %s is not told", maxWaiting, eventType)
	}
}

// Run makes the calls until ctx ends. What has not been taken by then is lost.
func (s *Sender) Run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case next := <-s.waiting:
			s.deliver(ctx, next)
		}
	}
}

// deliver makes a call until it is answered 2xx, with one id: who has taken it
// and was not heard knows it again.
func (s *Sender) deliver(ctx context.Context, c call) {
	pause := s.config.FirstPause
	for attempt := 1; ; attempt++ {
		err := s.attempt(ctx, c)
		if err == nil || ctx.Err() != nil {
			return
		}
		if attempt == maxAttempts {
			s.config.Log("webhook %s was not taken, and is given up: %v", c.id, err)
			return
		}
		s.config.Log("webhook %s was not taken: %v; again soon", c.id, err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause/2 + mathrand.N(pause/2+1)):
		}
		pause = min(2*pause, longestPause)
	}
}

func (s *Sender) attempt(ctx context.Context, c call) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, s.config.URL, bytes.NewReader(c.body))
	if err != nil {
		return fmt.Errorf("the webhook's URL: %w", err)
	}
	at := strconv.FormatInt(time.Now().Unix(), 10)
	mac := hmac.New(sha256.New, s.key)
	fmt.Fprintf(mac, "%s.%s.%s", c.id, at, c.body)
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("Webhook-Id", c.id)
	request.Header.Set("Webhook-Timestamp", at)
	request.Header.Set("Webhook-Signature", "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	response, err := s.client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	_, _ = io.CopyN(io.Discard, response.Body, 64<<10) // so that the connection can be used again
	if response.StatusCode/100 != 2 {
		return fmt.Errorf("it was answered %d", response.StatusCode)
	}
	return nil
}
