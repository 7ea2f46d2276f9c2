package serve

import (
	"errors"
	"io"
	"net/http"
	"strconv"

	"github.com/lambdamesh/lambdamesh/meshconfig/proxy/compile"
)

// Reply answers a request here. extra adds headers.
func (e *exchange) Reply(code int, details, body string, extra func(http.Header)) {
	e.Local.Code, e.Local.Details, e.Local.Body = code, details, body
	header := e.w.Header()
	contentType := "text/plain"
	if extra != nil {
		extra(header)
	}
	var form *compile.BodyFormat
	if l := e.hcm.LocalReply; l != nil {
		form = l.Body
		for i := range l.Mappers {
			m := &l.Mappers[i]
			if !m.Match(code) {
				continue
			}
			if m.HasBody {
				e.Local.Body = m.Text
			}
			m.Headers.Apply(&e.Request, header)
			if m.Status != 0 {
				e.Local.Code = m.Status
			}
			if m.Body != nil {
				form = m.Body
			}
			break
		}
	}
	text := e.Local.Body
	if form != nil {
		text, contentType = form.Write(&e.Request), form.ContentType
	}
	if text != "" {
		header.Set("Content-Type", contentType)
	}
	header.Set("Content-Length", strconv.Itoa(len(text)))
	if e.route != nil {
		e.changeResponse(e.weighted, header)
	}
	e.finishHeader(header)
	e.w.WriteHeader(e.Local.Code)
	if text != "" {
		_, _ = e.w.Write([]byte(text)) // the client is gone: nobody to tell
	}
}

// Empty answers a request here, without a body: what local replies look like is
// not asked.
func (e *exchange) Empty(code int) {
	h := e.w.Header()
	h.Set("Content-Length", "0")
	e.finishHeader(h)
	e.w.WriteHeader(code)
}

// OnResponse has change called with the header of the answer.
func (e *exchange) OnResponse(change func(http.Header)) { e.onResponse = append(e.onResponse, change) }

// Header is that of the answer.
func (e *exchange) Header() http.Header { return e.w.Header() }

// LimitBody implements filters.Answerer.
func (e *exchange) LimitBody(most int64) {
	e.HTTP.Body = &limitedBody{ReadCloser: e.HTTP.Body, left: most}
}

// errBodyTooLarge is what reading a body ends with that is too large.
var errBodyTooLarge = errors.New("the body is larger than it may be")

// limitedBody ends with an error when it is too large.
type limitedBody struct {
	io.ReadCloser
	left int64
}

func (b *limitedBody) Read(p []byte) (int, error) {
	if b.left < 0 {
		return 0, errBodyTooLarge
	}
	if int64(len(p)) > b.left+1 {
		p = p[:b.left+1]
	}
	n, err := b.ReadCloser.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, errBodyTooLarge
	}
	return n, err
}

// Shared implements filters.Answerer.
func (e *exchange) Shared(key string, create func() any) any { return e.server.shared.get(key, create) }
