package members

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/lambdamesh/lambdamesh/pkg/httpserver"
)

// Bounds of the webhook, which every pod reaches while only the API server has
// business there. That has one address or two, and speaks HTTP/1.1 to webhooks
// whatever they offer (https://issue.k8s.io/75791): a burst of pods is as many
// connections of one remote. A connection that waits is cheap, so a remote may have
// many; what costs is the work, for which its requests queue.
const (
	// readTimeout is less than the ten seconds that the API server waits.
	readTimeout    = 8 * time.Second
	writeTimeout   = 5 * time.Second
	maxHeaderBytes = 16 << 10

	maxConns          = 1024
	maxConnsPerRemote = 256

	// maxReviews are read, computed and answered at once, maxReviewsPerRemote of
	// them for one remote.
	maxReviews          = 128
	maxReviewsPerRemote = 16
	// maxComputed of them have been decoded: nobody keeps such a place, no client
	// is waited for in it.
	maxComputed = 2

	// maxReviewBytes is more than a pod of the largest size that etcd takes.
	maxReviewBytes = 3 << 20
	// smallReviewBytes is what nearly every pod's review stays below. Larger ones
	// share largeReviews places as well, so that those who keep them hold up other
	// large ones only.
	smallReviewBytes = 128 << 10
	largeReviews     = 4
	// placeWait is how long a request waits for its places; the body has to come in
	// what is left of readTimeout.
	placeWait = 4 * time.Second
)

// bounds keep requests from taking more memory than there is.
type bounds struct {
	all   places
	large places

	mu      sync.Mutex
	remotes map[netip.Prefix]*share
}

// places hold one for each that is taken.
type places chan struct{}

func (p places) enter(ctx context.Context) bool {
	select {
	case p <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

func (p places) leave() { <-p }

// share is what a remote has of all places.
type share struct {
	places
	users int // who have a place or wait for one
}

func newBounds() *bounds {
	return &bounds{all: make(places, maxReviews), large: make(places, largeReviews), remotes: map[netip.Prefix]*share{}}
}

// bounded refuses what is too large before a byte of it is read, and what finds
// no place in time.
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
		}
		leave := b.enter(r, limit > smallReviewBytes)
		if leave == nil {
			w.Header().Set("Retry-After", "1")
			httpserver.Problem(w, http.StatusServiceUnavailable, "", "too many reviews are being read")
			return
		}
		defer leave()
		// Who does not read its answer is not waited for.
		if err := http.NewResponseController(w).SetWriteDeadline(time.Now().Add(readTimeout + writeTimeout)); err != nil {
			httpserver.Problem(w, http.StatusInternalServerError, "", err.Error())
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, limit)
		next.ServeHTTP(w, r)
	})
}

// enter takes the places of a request, of its remote's share first: what waits for
// that takes nothing from others. It is nil when they are not free in time.
func (b *bounds) enter(r *http.Request, large bool) (leave func()) {
	ctx, cancel := context.WithTimeout(r.Context(), placeWait)
	defer cancel()
	remote := remoteOf(r.RemoteAddr)
	b.mu.Lock()
	own := b.remotes[remote]
	if own == nil {
		own = &share{places: make(places, maxReviewsPerRemote)}
		b.remotes[remote] = own
	}
	own.users++
	b.mu.Unlock()

	wanted := []places{own.places, b.all}
	if large {
		wanted = append(wanted, b.large)
	}
	taken := 0
	leave = func() {
		for _, p := range wanted[:taken] {
			p.leave()
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		if own.users--; own.users == 0 {
			delete(b.remotes, remote)
		}
	}
	for _, p := range wanted {
		if !p.enter(ctx) {
			leave()
			return nil
		}
		taken++
	}
	return leave
}

// remoteOf is whom a request counts for: an address, or for IPv6 the network of 64
// bits that one host may have to itself.
func remoteOf(address string) netip.Prefix {
	parsed, err := netip.ParseAddrPort(address)
	if err != nil {
		return netip.Prefix{}
	}
	addr := parsed.Addr().Unmap().WithZone("")
	bits := addr.BitLen()
	if addr.Is6() {
		bits = 64
	}
	return netip.PrefixFrom(addr, bits).Masked()
}
