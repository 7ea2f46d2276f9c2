package compile

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"github.com/lambdamesh/lambdamesh/meshconfig/proxy/strict"
)

// RetryPolicy is a compiled RetryPolicy.
type RetryPolicy struct {
	on            map[string]bool
	codes         []uint32
	Attempts      int // beyond the first
	PerTry        time.Duration
	base, max     time.Duration
	AvoidPrevious bool
}

// ResetReason is why a request got no answer.
type ResetReason string

// Reasons in Envoy's words; they are part of the answer's body.
const (
	ReasonConnect ResetReason = "remote connection failure"
	ReasonReset   ResetReason = "connection termination"
	ReasonTimeout ResetReason = "timeout"
)

// grpcRetries are the conditions that look at grpc-status.
var grpcRetries = map[string]string{ //nolint:gochecknoglobals // read only
	"cancelled":         "1", //nolint:misspell // gRPC spells it so
	"deadline-exceeded": "4", "resource-exhausted": "8", "internal": "13", "unavailable": "14",
}

func compileRetry(at string, c *routev3.RetryPolicy) (*RetryPolicy, error) {
	if err := strict.Allow(at, c, "retry_on", "num_retries", "per_try_timeout", "retry_back_off", "retriable_status_codes",
		"retry_host_predicate", "host_selection_retry_max_attempts"); err != nil {
		return nil, err
	}
	p := &RetryPolicy{on: map[string]bool{}, codes: c.GetRetriableStatusCodes(), Attempts: 1, PerTry: strict.Duration(c.GetPerTryTimeout(), 0), base: 25 * time.Millisecond}
	if c.GetNumRetries() != nil {
		p.Attempts = int(c.GetNumRetries().GetValue())
	}
	for _, on := range strings.Split(c.GetRetryOn(), ",") {
		on = strings.TrimSpace(on)
		switch on {
		case "":
		case "5xx", "gateway-error", "reset", "reset-before-request", "connect-failure", "refused-stream", "retriable-4xx", "retriable-status-codes":
			p.on[on] = true
		default:
			if _, ok := grpcRetries[on]; !ok {
				return nil, fmt.Errorf("%s: retry_on %q is not supported", at, on)
			}
			p.on[on] = true
		}
	}
	if b := c.GetRetryBackOff(); b != nil {
		p.base = strict.Duration(b.GetBaseInterval(), p.base)
		p.max = strict.Duration(b.GetMaxInterval(), 0)
	}
	if p.max == 0 {
		p.max = 10 * p.base
	}
	for _, predicate := range c.GetRetryHostPredicate() {
		if predicate.GetName() != "envoy.retry_host_predicates.previous_hosts" {
			return nil, fmt.Errorf("%s: retry_host_predicate %q is not supported", at, predicate.GetName())
		}
		p.AvoidPrevious = true
	}
	return p, nil
}

// Replays tells whether requests may be sent again that an endpoint has seen. Where
// not, no body has to be kept for it.
func (p *RetryPolicy) Replays() bool {
	for on := range p.on {
		if on != "connect-failure" && on != "refused-stream" && on != "reset-before-request" {
			return true
		}
	}
	return false
}

// Response tells whether an answer is to be tried again.
func (p *RetryPolicy) Response(status int, header http.Header) bool {
	if p.on["5xx"] && status >= 500 ||
		p.on["gateway-error"] && (status == 502 || status == 503 || status == 504) ||
		p.on["retriable-4xx"] && status == http.StatusConflict ||
		p.on["retriable-status-codes"] && slices.Contains(p.codes, uint32(status)) {
		return true
	}
	if code := header.Get("Grpc-Status"); code != "" {
		for on, want := range grpcRetries {
			if p.on[on] && code == want {
				return true
			}
		}
	}
	return false
}

// Failure tells whether a request that got no answer is to be tried again.
func (p *RetryPolicy) Failure(reason ResetReason, refused bool) bool {
	switch {
	case p.on["5xx"] || p.on["reset"]:
		return true
	case p.on["gateway-error"]:
		return reason == ReasonTimeout || reason == ReasonConnect || reason == ReasonReset
	case p.on["connect-failure"] && reason == ReasonConnect:
		return true
	case p.on["refused-stream"] && refused:
		return true
	case p.on["reset-before-request"] && reason == ReasonConnect:
		return true
	}
	return false
}

// Backoff before the n-th retry (from 1): random below base*(2^n-1), at most
// max, as Envoy computes it.
func (p *RetryPolicy) Backoff(n int) time.Duration {
	ceiling := min(p.base*time.Duration(1<<min(n, 16)-1), p.max)
	if ceiling <= 0 {
		return 0
	}
	return rand.N(ceiling)
}
