package serve

import (
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
