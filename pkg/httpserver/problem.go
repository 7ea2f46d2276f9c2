package httpserver

import (
	"encoding/json"
	"net/http"
)

// FieldError is one entry of a problem's errors: a field of the request (a JSON
// member, a header, a parameter) and what is wrong with it.
type FieldError struct {
	Field  string `json:"field"`
	Detail string `json:"detail"`
}

// problem is application/problem+json (RFC 9457, section 3.1) with the
// extension member errors. Its type is about:blank, which is left out.
type problem struct {
	Title  string       `json:"title"`
	Status int          `json:"status"`
	Detail string       `json:"detail,omitempty"`
	Errors []FieldError `json:"errors,omitempty"`
}

// Problem answers with application/problem+json (RFC 9457). Title says what
// kind of problem it is, detail what is special about this one and what to do;
// an empty title is the status' own text. The body is for strangers: put no
// secrets and no internals into it.
func Problem(w http.ResponseWriter, status int, title, detail string, errors ...FieldError) {
	if title == "" {
		title = http.StatusText(status)
	}
	header := w.Header()
	header.Del("Content-Length")
	header.Del("Content-Encoding")
	header.Set("Content-Type", "application/problem+json")
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false) // people read this in terminals
	// A client that went away cannot be told.
	_ = encoder.Encode(problem{Title: title, Status: status, Detail: detail, Errors: errors})
}
