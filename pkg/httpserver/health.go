package httpserver

import (
	"context"
	"net/http"
	"time"
)

// readyTimeout bounds a readiness check: the kubelet's default is one second,
// and an answer that comes too late is none.
const readyTimeout = time.Second

// Health returns a mux with GET /healthz, which answers 200 as long as the
// process serves, and GET /readyz, which answers 503 with the text of the error
// that ready returns. Callers add /metrics and what else belongs on an
// administrative port.
func Health(ready func(context.Context) error) *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { answerOK(w) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), readyTimeout)
		defer cancel()
		if err := ready(ctx); err != nil {
			Problem(w, http.StatusServiceUnavailable, "Not ready", err.Error())
			return
		}
		answerOK(w)
	})
	return mux
}

func answerOK(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	_, _ = w.Write([]byte("ok\n"))
}

// NotFound answers 404 with a problem body; it is the handler of a mux's "/".
func NotFound(w http.ResponseWriter, r *http.Request) {
	Problem(w, http.StatusNotFound, "Not found", "there is nothing at "+r.URL.Path)
}
