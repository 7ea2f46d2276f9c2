package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	// tokenLifetime is short so that one sees tokens being renewed.
	tokenLifetime = 5 * time.Minute
	// maxOrders is what a demo remembers.
	maxOrders = 1000
)

// Order is what somebody bought.
type Order struct {
	Code      string    `json:"code"`
	Customer  string    `json:"customer"`
	Total     float64   `json:"total"`
	Currency  string    `json:"currency"`
	CreatedAt time.Time `json:"createdAt"`
}

type checkout struct {
	Customer string  `json:"customer"`
	Total    float64 `json:"total"`
}

type credentials struct{ id, secret string }

// system is the commerce system.
type system struct {
	bus    string
	client credentials
	http   *http.Client

	mu     sync.Mutex
	orders []Order
	tokens map[string]time.Time // token to its end
}

// newSystem makes one with an order that everybody can ask for.
func newSystem(bus string, client credentials) *system {
	return &system{
		bus:    strings.TrimSuffix(bus, "/"),
		client: client,
		http:   &http.Client{Timeout: 10 * time.Second},
		tokens: map[string]time.Time{},
		orders: []Order{{
			Code: "4caad296-e0c5-491e-98ac-0ed118f9474e", Customer: "grace", Total: 42, Currency: "EUR",
			CreatedAt: time.Date(2018, 11, 2, 22, 8, 41, 0, time.UTC),
		}},
	}
}

func (s *system) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /checkout", s.checkout)
	mux.HandleFunc("POST /oauth/token", s.token)
	mux.HandleFunc("GET /api/orders", s.protected(s.list))
	mux.HandleFunc("GET /api/orders/{code}", s.protected(s.show))
	return mux
}

// token is the client credentials grant (RFC 6749, section 4.4).
func (s *system) token(w http.ResponseWriter, r *http.Request) {
	id, secret, _ := r.BasicAuth()
	known := subtle.ConstantTimeCompare([]byte(id), []byte(s.client.id)) & subtle.ConstantTimeCompare([]byte(secret), []byte(s.client.secret))
	if known != 1 {
		answer(w, http.StatusUnauthorized, map[string]string{"error": "invalid_client"})
		return
	}
	if r.FormValue("grant_type") != "client_credentials" {
		answer(w, http.StatusBadRequest, map[string]string{"error": "unsupported_grant_type"})
		return
	}
	token := rand.Text()
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	for old, end := range s.tokens {
		if now.After(end) {
			delete(s.tokens, old)
		}
	}
	s.tokens[token] = now.Add(tokenLifetime)
	answer(w, http.StatusOK, map[string]any{"access_token": token, "token_type": "Bearer", "expires_in": int(tokenLifetime.Seconds())})
}

func (s *system) protected(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		s.mu.Lock()
		end, ok := s.tokens[token]
		s.mu.Unlock()
		if !ok || time.Now().After(end) {
			w.Header().Set("WWW-Authenticate", "Bearer")
			answer(w, http.StatusUnauthorized, map[string]string{"error": "get a token at /oauth/token"})
			return
		}
		next(w, r)
	}
}

func (s *system) list(w http.ResponseWriter, _ *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	answer(w, http.StatusOK, s.orders)
}

func (s *system) show(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.IndexFunc(s.orders, func(o Order) bool { return o.Code == r.PathValue("code") })
	if i < 0 {
		answer(w, http.StatusNotFound, map[string]string{"error": "there is no such order"})
		return
	}
	answer(w, http.StatusOK, s.orders[i])
}

// checkout creates an order and tells the world. An order that nobody was told
// of is taken back, so that the customer can try again.
func (s *system) checkout(w http.ResponseWriter, r *http.Request) {
	var c checkout
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 64<<10)).Decode(&c); err != nil || c.Total <= 0 {
		answer(w, http.StatusBadRequest, map[string]string{"error": `send {"customer": "ada", "total": 120}`})
		return
	}
	order := Order{Code: newCode(), Customer: c.Customer, Total: c.Total, Currency: "EUR", CreatedAt: time.Now().UTC()}
	s.keep(order)
	if err := s.publish(r.Context(), order); err != nil {
		s.takeBack(order.Code)
		answer(w, http.StatusServiceUnavailable, map[string]string{"error": err.Error()})
		return
	}
	answer(w, http.StatusCreated, order)
}

func (s *system) keep(order Order) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.orders = append(s.orders, order)
	s.orders = s.orders[max(0, len(s.orders)-maxOrders):]
}

func (s *system) takeBack(code string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.orders = slices.DeleteFunc(s.orders, func(o Order) bool { return o.Code == code })
}

// publish sends order.created.v1 as a CloudEvent in binary mode. It carries the
// code only: who is allowed to know more asks the API.
func (s *system) publish(ctx context.Context, order Order) error {
	data, err := json.Marshal(map[string]string{"orderCode": order.Code})
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, s.bus+"/publish", bytes.NewReader(data))
	if err != nil {
		return err
	}
	for name, value := range map[string]string{
		"Content-Type": "application/json", "Ce-Specversion": "1.0", "Ce-Type": "order.created.v1", "Ce-Source": "commerce",
		"Ce-Id": order.Code, "Ce-Subject": order.Code, "Ce-Time": order.CreatedAt.Format(time.RFC3339Nano),
	} {
		request.Header.Set(name, value)
	}
	response, err := s.http.Do(request)
	if err != nil {
		return fmt.Errorf("the event bus is not there: %w", err)
	}
	defer response.Body.Close()
	if response.StatusCode/100 != 2 {
		why, _ := io.ReadAll(io.LimitReader(response.Body, 1<<10))
		return fmt.Errorf("the event bus answered %s: %s", response.Status, why)
	}
	return nil
}

// newCode returns a random UUID (RFC 9562, version 4).
func newCode() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // it never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:])
}

func answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}
