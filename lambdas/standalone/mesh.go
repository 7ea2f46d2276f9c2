package standalone

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"

	"github.com/lambdamesh/lambdamesh/pkg/httpserver"
)

const (
	publishPath   = "/publish"
	connectorPath = "/connector"
	maxEvent      = 1 << 20
	maxShown      = 2000
)

// printEvents is the event bus: it shows what is published, and delivers it to
// nobody.
func printEvents(out io.Writer) http.Handler {
	var sequence atomic.Uint64
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+publishPath, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxEvent))
		if err != nil {
			httpserver.Problem(w, http.StatusRequestEntityTooLarge, "", fmt.Sprintf("an event may have %d bytes", maxEvent))
			return
		}
		var event struct{ ID, Type, Source string }
		if err := json.Unmarshal(body, &event); err != nil || event.Type == "" || event.ID == "" {
			httpserver.Problem(w, http.StatusBadRequest, "", "want a structured CloudEvent with id and type")
			return
		}
		fmt.Fprintf(out, "  event   %.*s\n", maxShown, body)
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusAccepted)
		_ = json.NewEncoder(w).Encode(map[string]any{"events": []any{map[string]any{"id": event.ID, "sequence": sequence.Add(1)}}})
	})
	mux.HandleFunc(connectorPath+"/", func(w http.ResponseWriter, _ *http.Request) {
		httpserver.Problem(w, http.StatusBadGateway, "", "a lambda that runs alone has no applications: try it with `lambdamesh dev`")
	})
	mux.HandleFunc("/", httpserver.NotFound)
	return mux
}
