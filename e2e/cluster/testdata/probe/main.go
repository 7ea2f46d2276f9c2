// Command probe is what the tests run in pods: a third party's API, a sink that
// remembers events, and the hands of a pod that means no good. Its application
// listens where LAMBDAMESH_LISTEN says, as a lambda's does; what the test asks of
// it comes to the admin port.
package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
)

func main() {
	app := &application{seen: map[string]int{}}
	errs := make(chan error, 2)
	serve := func(address string, handler http.Handler) {
		network, at, _ := strings.Cut(address, ":")
		if network == "unix" {
			_ = os.Remove(at)
		}
		listener, err := net.Listen(network, at)
		if err == nil {
			fmt.Println("listening at", address)
			err = (&http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second}).Serve(listener)
		}
		errs <- err
	}
	go serve(env("LAMBDAMESH_LISTEN", "tcp::8080"), app.routes())
	go serve(env("LAMBDAMESH_ADMIN_LISTEN", "tcp::8081"), app.admin())
	fmt.Println(<-errs)
	os.Exit(1)
}

func env(name, otherwise string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return otherwise
}

type application struct {
	mu   sync.Mutex
	seen map[string]int // events by id
}

func (a *application) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /oauth/token", func(w http.ResponseWriter, r *http.Request) {
		if id, secret, _ := r.BasicAuth(); id != "lambdamesh" || secret != "not-a-secret-but-a-demo" {
			answer(w, http.StatusUnauthorized, map[string]string{"error": "invalid_client"})
			return
		}
		answer(w, http.StatusOK, map[string]any{"access_token": "let-me-in", "token_type": "Bearer", "expires_in": 300})
	})
	mux.HandleFunc("GET /api/orders/{code}", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer let-me-in" {
			answer(w, http.StatusUnauthorized, map[string]string{"error": "get a token at /oauth/token"})
			return
		}
		answer(w, http.StatusOK, map[string]any{"code": r.PathValue("code"), "customer": "ada", "total": 120, "currency": "EUR"})
	})
	mux.HandleFunc("POST /events", func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		a.mu.Lock()
		defer a.mu.Unlock()
		a.seen[r.Header.Get("Ce-Id")]++
		w.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		answer(w, http.StatusOK, map[string]any{"method": r.Method, "path": r.URL.Path, "header": r.Header})
	})
	return mux
}

// admin is what the test talks to.
func (a *application) admin() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	mux.HandleFunc("GET /seen", func(w http.ResponseWriter, _ *http.Request) {
		a.mu.Lock()
		defer a.mu.Unlock()
		answer(w, http.StatusOK, a.seen)
	})
	mux.HandleFunc("POST /do", func(w http.ResponseWriter, r *http.Request) {
		var wanted call
		if err := json.NewDecoder(r.Body).Decode(&wanted); err != nil {
			answer(w, http.StatusBadRequest, map[string]string{"error": err.Error()})
			return
		}
		answer(w, http.StatusOK, wanted.do(r.Context()))
	})
	mux.HandleFunc("POST /load", func(w http.ResponseWriter, r *http.Request) {
		var wanted load
		if err := json.NewDecoder(r.Body).Decode(&wanted); err != nil {
			answer(w, http.StatusBadRequest, map[string]string{"error": err.Error()})
			return
		}
		answer(w, http.StatusOK, wanted.run(r.Context()))
	})
	return mux
}

func answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}

// call is a request that the pod makes.
type call struct {
	Method, URL, Body string
	Header            map[string]string
	// Proxy sends it through the pod's sidecar.
	Proxy bool
	// Identity is a SPIFFE identity to show in a certificate that nobody issued.
	Identity string
	// Certificate and Key (PEM) to show.
	Certificate, Key string
}

type result struct {
	Status int
	Body   string
	Header http.Header
	Error  string
	// End is how it ended: answered, or what became of the connection.
	End string
}

func (c call) do(ctx context.Context) result {
	client, err := c.client()
	if err != nil {
		return failed(err)
	}
	defer client.CloseIdleConnections()
	return c.send(ctx, client)
}

func (c call) client() (*http.Client, error) {
	transport := &http.Transport{
		TLSClientConfig:     &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // it means no good
		MaxIdleConnsPerHost: 256, DialContext: (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
	}
	if c.Proxy {
		proxy, err := url.Parse(env("HTTP_PROXY", "http://127.0.0.1:15001"))
		if err != nil {
			return nil, err
		}
		transport.Proxy = http.ProxyURL(proxy)
	}
	if c.Identity != "" {
		pair, err := selfIssued(c.Identity)
		if err != nil {
			return nil, err
		}
		transport.TLSClientConfig.Certificates = []tls.Certificate{pair}
	}
	if c.Certificate != "" {
		pair, err := tls.X509KeyPair([]byte(c.Certificate), []byte(c.Key))
		if err != nil {
			return nil, err
		}
		transport.TLSClientConfig.Certificates = []tls.Certificate{pair}
	}
	return &http.Client{Transport: transport, Timeout: 15 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}, nil
}

func (c call) send(ctx context.Context, client *http.Client) result {
	request, err := http.NewRequestWithContext(ctx, or(c.Method, http.MethodGet), c.URL, strings.NewReader(c.Body))
	if err != nil {
		return failed(err)
	}
	for name, value := range c.Header {
		request.Header.Set(name, value)
	}
	if host := c.Header["Host"]; host != "" {
		request.Host = host
	}
	response, err := client.Do(request)
	if err != nil {
		return failed(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	r := result{Status: response.StatusCode, Body: string(body), Header: response.Header, End: "answered"}
	if err != nil {
		r.Error = err.Error()
	}
	return r
}

// failed tells apart who was there and refused, and where nobody was: a peer that
// answers with a reset, ends the connection or sends a TLS alert was reached.
func failed(err error) result {
	r := result{Error: err.Error(), End: "no way"}
	var timeout interface{ Timeout() bool }
	switch {
	case strings.Contains(r.Error, "remote error: tls:"):
		r.End = "alert"
	case errors.Is(err, syscall.ECONNREFUSED):
		r.End = "no listener"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		r.End = "closed"
	case errors.As(err, &timeout) && timeout.Timeout():
		r.End = "timeout"
	}
	return r
}

func or(value, otherwise string) string {
	if value != "" {
		return value
	}
	return otherwise
}

// load is a call made again and again by several at once.
type load struct {
	Call     call
	Callers  int
	Duration time.Duration
	// Event gives each request an id of its own.
	Event bool
}

type loaded struct {
	Requests int
	Statuses map[int]int
	Errors   map[string]int
	Elapsed  time.Duration
	P50, P99 time.Duration
}

func (l load) run(ctx context.Context) loaded {
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, l.Duration)
	defer cancel()
	total := loaded{Statuses: map[int]int{}, Errors: map[string]int{}}
	client, err := l.Call.client()
	if err != nil {
		total.Errors[err.Error()]++
		return total
	}
	defer client.CloseIdleConnections()
	var mu sync.Mutex
	var took times
	var wg sync.WaitGroup
	for n := range l.Callers {
		wg.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				c := l.Call
				if l.Event {
					c.Header = map[string]string{}
					for name, value := range l.Call.Header {
						c.Header[name] = value
					}
					c.Header["Ce-Id"] = fmt.Sprintf("%d-%d-%d", began.UnixNano(), n, i)
				}
				sent := time.Now()
				r := c.send(context.WithoutCancel(ctx), client)
				mu.Lock()
				took = append(took, time.Since(sent))
				total.Requests++
				if r.Error != "" {
					total.Errors[r.Error]++
				} else {
					total.Statuses[r.Status]++
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	total.Elapsed = time.Since(began)
	total.P50, total.P99 = took.at(0.50), took.at(0.99)
	return total
}

// selfIssued is a certificate with an identity that its holder made up.
func selfIssued(identity string) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	uri, err := url.Parse(identity)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "probe"}, URIs: []*url.URL{uri},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, errors.Join(errors.New("make a certificate"), err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}
