package pairing

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/connector/authority"
	"github.com/lambdamesh/lambdamesh/connector/public"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

const (
	// maxBody of a request for a certificate.
	maxBody = 64 << 10
	// unheardRate and unheardBurst hold tokens that nobody has heard of to what the
	// API server may be asked about them, per second.
	unheardRate, unheardBurst = 10, 20
	// renewEvery and renewBurst hold an application to what it may have signed.
	renewEvery, renewBurst = 10 * time.Second, 10
	// retryAfter is when who is told to come again should, in seconds.
	retryAfter = "5"
)

// Config of [Pairing]. All is required.
type Config struct {
	// Objects of the API server: read from a cache, written past it.
	Objects client.Client
	// Live reads them past the cache.
	Live client.Reader
	// Clients is told of what is revoked here.
	Clients *public.Clients
	// PublicURL is where third-party systems reach the connector, such as
	// https://connector.example.com.
	PublicURL string
	// Log of what clients are not told, and of every certificate.
	Log *slog.Logger
}

// Pairing implements [public.Pairing].
type Pairing struct {
	config    Config
	now       func() time.Time
	authority atomic.Pointer[authority.Authority]
	unheard   *rate.Limiter

	mu       sync.Mutex
	renewals map[string]*rate.Limiter // of applications
}

// New makes the handlers of pairing.
func New(config Config) *Pairing {
	config.PublicURL = strings.TrimSuffix(config.PublicURL, "/")
	return &Pairing{config: config, now: time.Now, unheard: rate.NewLimiter(unheardRate, unheardBurst), renewals: map[string]*rate.Limiter{}}
}

// SetAuthority says who signs; nil: nobody does.
func (p *Pairing) SetAuthority(a *authority.Authority) { p.authority.Store(a) }

// refusal is an answer that is no success.
type refusal struct {
	status int
	detail string
}

func (r *refusal) Error() string { return r.detail }

// errUnavailable: the API server cannot be asked.
var errUnavailable = errors.New("the API server cannot be asked")

func unavailable(err error) error { return fmt.Errorf("%w: %w", errUnavailable, err) }

func (p *Pairing) answerError(w http.ResponseWriter, err error) {
	var refused *refusal
	switch {
	case errors.As(err, &refused):
	case errors.Is(err, errUnavailable):
		p.config.Log.Warn("pairing failed", "error", err)
		refused = &refusal{http.StatusServiceUnavailable, "no certificate can be issued or revoked at the moment: try again"}
	default:
		p.config.Log.Error("pairing failed", "error", err)
		refused = &refusal{http.StatusInternalServerError, "internal error"}
	}
	if refused.status == http.StatusServiceUnavailable || refused.status == http.StatusTooManyRequests {
		w.Header().Set("Retry-After", retryAfter)
	}
	public.Refuse(w, refused.status, "%s", refused.detail)
}

func answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	_ = encoder.Encode(body) // a client that went away cannot be told
}

// certificateInfo says what a request for a certificate has to be like.
type certificateInfo struct {
	Subject      string `json:"subject"`
	Extensions   string `json:"extensions"`
	KeyAlgorithm string `json:"key-algorithm"`
}

func infoOf(application string) certificateInfo {
	return certificateInfo{Subject: authority.Subject(application), KeyAlgorithm: "rsa2048"}
}

// apis are the URLs of an application.
type apis struct {
	MetadataURL   string `json:"metadataUrl"`
	EventsURL     string `json:"eventsUrl"`
	EventsInfoURL string `json:"eventsInfoUrl"`
}

func (p *Pairing) apis(application string) apis {
	base := p.config.PublicURL + "/" + application
	return apis{MetadataURL: base + "/v1/metadata/services", EventsURL: base + "/v1/events", EventsInfoURL: base + "/v1/events/subscribed"}
}

// Info implements [public.Pairing]. It does not use the token up.
func (p *Pairing) Info(w http.ResponseWriter, r *http.Request) {
	token := r.URL.Query().Get("token")
	request, err := p.request(r.Context(), token)
	if err != nil {
		p.answerError(w, err)
		return
	}
	certificates := p.config.PublicURL + "/v1/applications/certificates"
	answer(w, http.StatusOK, struct {
		CSRURL string `json:"csrUrl"`
		API    any    `json:"api"`
		Info   any    `json:"certificate"`
	}{
		withToken(certificates, token),
		struct {
			apis
			InfoURL         string `json:"infoUrl"`
			CertificatesURL string `json:"certificatesUrl"`
		}{p.apis(request.Spec.Application), p.config.PublicURL + "/v1/applications/management/info", certificates},
		infoOf(request.Spec.Application),
	})
}

// Sign implements [public.Pairing]: it takes a token for a certificate. A request
// that cannot be signed uses no token up.
func (p *Pairing) Sign(w http.ResponseWriter, r *http.Request) {
	err := func() error {
		token := r.URL.Query().Get("token")
		request, err := p.request(r.Context(), token)
		if err != nil {
			return err
		}
		application := request.Spec.Application
		var app v1alpha1.Application
		err = p.config.Live.Get(r.Context(), client.ObjectKey{Name: application}, &app)
		if apierrors.IsNotFound(err) {
			return &refusal{http.StatusNotFound, "there is no application " + application + " any more"}
		}
		if err != nil {
			return unavailable(err)
		}
		csr, signer, err := p.prepare(w, r, application)
		if err != nil {
			return err
		}
		if err := p.use(r.Context(), client.ObjectKeyFromObject(request), token); err != nil {
			return err
		}
		return p.issue(r.Context(), w, application, csr, signer)
	}()
	if err != nil {
		p.answerError(w, err)
	}
}

// prepare reads a request for a certificate, and returns who signs it.
func (p *Pairing) prepare(w http.ResponseWriter, r *http.Request, application string) (*authority.Request, *authority.Authority, error) {
	var body struct {
		CSR string `json:"csr"`
	}
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody)).Decode(&body); err != nil {
		if tooLarge, ok := errors.AsType[*http.MaxBytesError](err); ok {
			return nil, nil, &refusal{http.StatusRequestEntityTooLarge, fmt.Sprintf("the body is larger than %d bytes", tooLarge.Limit)}
		}
		return nil, nil, &refusal{http.StatusBadRequest, `the body must be JSON: {"csr": "<base64 of the PEM>"}`}
	}
	csr, err := authority.ParseRequest(body.CSR, application)
	if err != nil {
		return nil, nil, &refusal{http.StatusBadRequest, err.Error()}
	}
	signer := p.authority.Load()
	if signer == nil {
		return nil, nil, fmt.Errorf("%w: there is no Secret %s to sign with", errUnavailable, v1alpha1.SecretConnectorCA)
	}
	return csr, signer, nil
}

// issue signs, lists and answers with a certificate.
func (p *Pairing) issue(ctx context.Context, w http.ResponseWriter, application string, csr *authority.Request, signer *authority.Authority) error {
	issued, err := signer.Sign(csr, p.now())
	if err != nil {
		return err
	}
	if err := p.list(ctx, application, issued); err != nil {
		return err
	}
	p.config.Log.Info("a client certificate was issued", "application", application, "serial", issued.Serial, "expiresAt", issued.ExpiresAt)
	encode := base64.StdEncoding.EncodeToString
	answer(w, http.StatusCreated, struct {
		Chain  string `json:"crt"`
		Client string `json:"clientCrt"`
		CA     string `json:"caCrt"`
	}{encode(slices.Concat(issued.Certificate, issued.Chain)), encode(issued.Certificate), encode(issued.Chain)})
	return nil
}

// Management implements [public.Pairing].
func (p *Pairing) Management(w http.ResponseWriter, _ *http.Request, c public.Client) {
	certificates := p.config.PublicURL + "/v1/applications/certificates"
	answer(w, http.StatusOK, struct {
		Identity any             `json:"clientIdentity"`
		URLs     any             `json:"urls"`
		Info     certificateInfo `json:"certificate"`
	}{
		map[string]string{"application": c.Application},
		struct {
			apis
			RenewURL  string `json:"renewCertUrl"`
			RevokeURL string `json:"revokeCertUrl"`
		}{p.apis(c.Application), certificates + "/renewals", certificates + "/revocations"},
		infoOf(c.Application),
	})
}

// Renew implements [public.Pairing]. The certificate it was called with stays good
// until it expires or is revoked.
func (p *Pairing) Renew(w http.ResponseWriter, r *http.Request, c public.Client) {
	err := func() error {
		if !p.mayRenew(c.Application) {
			return &refusal{http.StatusTooManyRequests, "too many certificates were requested: try again later"}
		}
		csr, signer, err := p.prepare(w, r, c.Application)
		if err != nil {
			return err
		}
		return p.issue(r.Context(), w, c.Application, csr, signer)
	}()
	if err != nil {
		p.answerError(w, err)
	}
}

// mayRenew is asked of applications that exist; those that went are forgotten
// when there are many.
func (p *Pairing) mayRenew(application string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	limiter, ok := p.renewals[application]
	if !ok {
		for name := range p.renewals {
			if !p.config.Clients.Exists(name) {
				delete(p.renewals, name)
			}
		}
		limiter = rate.NewLimiter(rate.Every(renewEvery), renewBurst)
		p.renewals[application] = limiter
	}
	return limiter.Allow()
}

// Revoke implements [public.Pairing].
func (p *Pairing) Revoke(w http.ResponseWriter, r *http.Request, c public.Client) {
	if err := p.revoke(r.Context(), c.Application, c.Serial); err != nil {
		p.answerError(w, err)
		return
	}
	p.config.Clients.Revoke(c)
	p.config.Log.Info("a client certificate was revoked", "application", c.Application, "serial", c.Serial)
	w.Header().Set("Connection", "close")
	w.WriteHeader(http.StatusCreated)
}
