package ingress

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"

	"github.com/lambdamesh/lambdamesh/eventbus/broker"
	"github.com/lambdamesh/lambdamesh/eventbus/event"
	"github.com/lambdamesh/lambdamesh/eventbus/event/legacy"
	"github.com/lambdamesh/lambdamesh/eventbus/tokens"
	"github.com/lambdamesh/lambdamesh/pkg/httpserver"
)

// Seconds a client is asked to wait.
const (
	retryUnavailable = 2
	retryFull        = 30
	retryTokens      = 1
	retryBusy        = 1
	retryBacklog     = 1
)

// failure is an answer that is no success.
type failure struct {
	status     int
	detail     string
	fields     []event.FieldError
	retryAfter int // seconds, 0 for none
}

func (f *failure) Error() string { return f.detail }

// failureOf says which answer an error gets. What the client is not told is
// logged by the caller.
func failureOf(err error) *failure {
	if f, ok := errors.AsType[*failure](err); ok {
		return f
	}
	if invalid, ok := errors.AsType[*event.InvalidError](err); ok {
		return &failure{status: http.StatusBadRequest, detail: "nothing was stored; every field to correct is named", fields: invalid.Fields}
	}
	if tooLarge, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return &failure{status: http.StatusRequestEntityTooLarge, detail: fmt.Sprintf("the body is larger than %d bytes", tooLarge.Limit)}
	}
	switch {
	case errors.Is(err, legacy.ErrSyntax):
		return &failure{status: http.StatusBadRequest, detail: err.Error()}
	case errors.Is(err, event.ErrUnsupportedMediaType):
		return &failure{status: http.StatusUnsupportedMediaType, detail: err.Error()}
	case errors.Is(err, event.ErrTooLarge):
		return &failure{status: http.StatusRequestEntityTooLarge, detail: err.Error()}
	case errors.Is(err, broker.ErrFull):
		return &failure{status: http.StatusInsufficientStorage, detail: "the storage for events is full; nothing was stored", retryAfter: retryFull}
	case errors.Is(err, broker.ErrBacklog):
		return &failure{
			status: http.StatusTooManyRequests, retryAfter: retryBacklog,
			detail: "too many events of this source wait to be stored; nothing of this request was stored",
		}
	case errors.Is(err, broker.ErrUnavailable):
		return &failure{
			status: http.StatusServiceUnavailable, retryAfter: retryUnavailable,
			detail: "the event store is not available; send the event again with the same id",
		}
	case errors.Is(err, errNoVerdict):
		return &failure{status: http.StatusServiceUnavailable, detail: "the token could not be checked now", retryAfter: retryUnavailable}
	case errors.Is(err, tokens.ErrTooMany):
		return &failure{status: http.StatusTooManyRequests, detail: "too many tokens that are not known were sent at once", retryAfter: retryTokens}
	case errors.Is(err, tokens.ErrUnauthenticated):
		return &failure{status: http.StatusUnauthorized, detail: "call through the mesh, or " + tokens.Hint}
	}
	return &failure{status: http.StatusInternalServerError, detail: "this is a fault of the event bus"}
}

// errorStyle is the form of error bodies.
type errorStyle int

const (
	problems     errorStyle = iota // RFC 9457
	legacyErrors                   // {status, type, message, moreInfo, details}
)

func (h *Handler) answerError(w http.ResponseWriter, style errorStyle, err error) {
	f := failureOf(err)
	if f.status >= http.StatusInternalServerError {
		h.config.Log.Warn("an event was refused", "status", f.status, "error", err)
	}
	h.count(f.status)
	if f.retryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(f.retryAfter))
	}
	if f.status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", "Bearer")
	}
	if style == problems {
		fields := make([]httpserver.FieldError, len(f.fields))
		for i, field := range f.fields {
			fields[i] = httpserver.FieldError{Field: field.Field, Detail: field.Detail}
		}
		title := ""
		if len(fields) > 0 {
			title = "Invalid event"
		}
		httpserver.Problem(w, f.status, title, f.detail, fields...)
		return
	}
	answerLegacy(w, f, errors.Is(err, legacy.ErrSyntax))
}

type legacyDetail struct {
	Field    string `json:"field"`
	Type     string `json:"type"`
	Message  string `json:"message"`
	MoreInfo string `json:"moreInfo"`
}

func answerLegacy(w http.ResponseWriter, f *failure, syntax bool) {
	details := make([]legacyDetail, len(f.fields))
	for i, field := range f.fields {
		details[i] = legacyDetail{Field: field.Field, Type: legacy.DetailType(field.Kind), Message: field.Field + " " + field.Detail}
	}
	kind := "bad_request"
	switch {
	case len(details) > 0:
		kind = "validation_violation"
	case syntax:
		kind = "bad_payload_syntax"
	case f.status == http.StatusRequestEntityTooLarge:
		kind = "request_body_too_large"
	case f.status >= http.StatusInternalServerError:
		kind = "internal_server_error"
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(f.status)
	// A client that went away cannot be told.
	_ = json.NewEncoder(w).Encode(map[string]any{
		"status": f.status, "type": kind, "message": f.detail, "moreInfo": "", "details": details,
	})
}

func (h *Handler) count(status int) {
	if h.config.Metrics != nil {
		h.config.Metrics.requests.WithLabelValues(strconv.Itoa(status)).Inc()
	}
}
