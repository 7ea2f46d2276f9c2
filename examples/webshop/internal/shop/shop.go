package shop

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"net/http"
)

// maxBody of a request, in bytes.
const maxBody = 64 << 10

// Config of a [Shop]. All is required.
type Config struct {
	// Credentials that clients of the APIs show.
	Credentials Credentials
	// Created is told of every order before its customer is. An error takes the
	// order back.
	Created func(context.Context, Order) error
	// Changed is told of every order whose status has changed.
	Changed func(Order)
	// Log gets a line for each request.
	Log func(format string, args ...any)
}

// Shop sells things.
type Shop struct {
	config  Config
	orders  book
	signing [32]byte // of access tokens and CSRF tokens, while it runs
	clients clients  // of the stock
}

// New opens a shop.
func New(config Config) *Shop {
	s := &Shop{config: config}
	_, _ = rand.Read(s.signing[:]) // never fails, see its doc
	return s
}

// Handler serves customers at /checkout, and clients of the APIs at /api and
// /odata.
func (s *Shop) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /checkout", s.checkout)
	mux.HandleFunc("POST /oauth/token", s.token)
	mux.HandleFunc("GET /api/orders", s.withToken(s.list))
	mux.HandleFunc("GET /api/orders/{code}", s.withToken(s.show))
	mux.HandleFunc("/odata/", s.withPassword(s.withCSRF(s.odata)))
	return s.logged(mux)
}

// checkout sells something and tells the mesh. An order that the mesh was not told
// of is taken back, so that the customer can try again.
func (s *Shop) checkout(w http.ResponseWriter, r *http.Request) {
	var wanted struct {
		Customer string  `json:"customer"`
		Total    float64 `json:"total"`
	}
	if json.NewDecoder(r.Body).Decode(&wanted) != nil || wanted.Customer == "" || wanted.Total <= 0 {
		refuse(w, http.StatusBadRequest, `send {"customer": "ada", "total": 120}`)
		return
	}
	order := s.orders.place(wanted.Customer, wanted.Total)
	if err := s.config.Created(r.Context(), order); err != nil {
		s.orders.takeBack(order.Code)
		refuse(w, http.StatusServiceUnavailable, "the order was taken back: "+err.Error())
		return
	}
	answer(w, http.StatusCreated, order)
}

func (s *Shop) list(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, s.orders.all()) }

func (s *Shop) show(w http.ResponseWriter, r *http.Request) {
	order, ok := s.orders.find(r.PathValue("code"))
	if !ok {
		refuse(w, http.StatusNotFound, "no such order")
		return
	}
	answer(w, http.StatusOK, order)
}

func (s *Shop) logged(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		answered := &statusWriter{ResponseWriter: w, status: http.StatusOK}
		next.ServeHTTP(answered, r)
		s.config.Log("%s %q: %d", r.Method, r.URL.Path, answered.status)
	})
}

type statusWriter struct {
	http.ResponseWriter
	status int
}

// WriteHeader implements http.ResponseWriter.
func (w *statusWriter) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

func answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // a client that went away cannot be told
}

func refuse(w http.ResponseWriter, status int, why string) {
	answer(w, status, map[string]string{"error": why})
}
