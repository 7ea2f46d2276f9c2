package members

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/lambdamesh/lambdamesh/pkg/httpserver"
)

// Bounds of the webhook, which every pod reaches while only the API server has
// business there. It has one address or two and milliseconds for a request; all
// together must fit into the memory of a control plane.
const (
	readTimeout    = 5 * time.Second
	writeTimeout   = 5 * time.Second
	maxHeaderBytes = 16 << 10

	maxConns          = 128
	maxConnsPerRemote = 16

	// maxReviewBytes is more than a pod of the largest size that etcd takes.
	maxReviewBytes = 3 << 20
	// smallReviewBytes is what nearly every pod's review stays below: such a one is
	// read at once. Larger ones share largeReviews places, so that those who keep
	// them hold up other large ones only.
	smallReviewBytes = 128 << 10
	largeReviews     = 4
	// placeWait is how long a large one waits; the body has to come in what is left
	// of readTimeout.
	placeWait = 2 * time.Second
)

// bounds keep requests' bodies from taking more memory than there is.
type bounds struct {
	large chan struct{} // holds one for each place that is taken
}

func newBounds() *bounds { return &bounds{large: make(chan struct{}, largeReviews)} }

// bounded refuses what is too large before a byte of it is read, and what finds
// no place.
func (b *bounds) bounded(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength > maxReviewBytes {
			httpserver.Problem(w, http.StatusRequestEntityTooLarge, "", fmt.Sprintf("the review is larger than %d bytes", maxReviewBytes))
			return
		}
		// Without a length it counts as a large one.
		limit := int64(smallReviewBytes)
		if r.ContentLength < 0 || r.ContentLength > limit {
			limit = maxReviewBytes
			if !b.enter(r.Context()) {
				w.Header().Set("Retry-After", "1")
				httpserver.Problem(w, http.StatusServiceUnavailable, "", "too many large reviews are being read")
				return
			}
			defer b.leave()
		}
		// An answer repeats the review's UID, which need not be short: who does not
		// read it is not waited for.
		if err := http.NewResponseController(w).SetWriteDeadline(time.Now().Add(readTimeout + writeTimeout)); err != nil {
			httpserver.Problem(w, http.StatusInternalServerError, "", err.Error())
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, limit)
		next.ServeHTTP(w, r)
	})
}

func (b *bounds) enter(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, placeWait)
	defer cancel()
	select {
	case b.large <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

func (b *bounds) leave() { <-b.large }
