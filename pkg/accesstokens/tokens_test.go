package accesstokens_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/pkg/accesstokens"
)

// server is an authorization server that takes a second for a token.
type server struct {
	asked     atomic.Int64
	expiresIn int
	status    int
	body      string // in place of a token
}

func (s *server) RoundTrip(r *http.Request) (*http.Response, error) {
	time.Sleep(time.Second)
	n := s.asked.Add(1)
	body := fmt.Sprintf(`{"access_token":"t%d","token_type":"Bearer","expires_in":%d}`, n, s.expiresIn)
	status := http.StatusOK
	if s.status != 0 {
		status, body = s.status, s.body
	}
	return &http.Response{
		StatusCode: status, Header: http.Header{"Content-Type": {"application/json"}}, Request: r,
		Body: io.NopCloser(strings.NewReader(body)),
	}, nil
}

func TestATokenIsSharedAndRenewedBeforeItEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, cache := &server{expiresIn: 600}, accesstokens.New()
		client := accesstokens.Client{TokenURL: "https://login.example.com/token", ID: "bus", Secret: "s3cret", Via: s}
		var all sync.WaitGroup
		for range 50 {
			all.Go(func() {
				token, fresh, err := cache.Get(t.Context(), client)
				if err != nil || token != "t1" || !fresh {
					t.Errorf("got %q, fresh %t, %v", token, fresh, err)
				}
			})
		}
		all.Wait()
		require.EqualValues(t, 1, s.asked.Load(), "fifty who need it at once share a request")

		time.Sleep(9 * time.Minute)
		token, fresh, err := cache.Get(t.Context(), client)
		require.NoError(t, err)
		require.Equal(t, "t1", token)
		require.False(t, fresh)

		time.Sleep(31 * time.Second) // 29 s before its end
		token, _, err = cache.Get(t.Context(), client)
		require.NoError(t, err)
		require.Equal(t, "t2", token, "one that is about to end is not sent any more")

		client.Version = "rotated"
		token, _, err = cache.Get(t.Context(), client)
		require.NoError(t, err)
		require.Equal(t, "t3", token)
	})
}

func TestARefusedTokenIsDroppedNowAndThen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, cache := &server{expiresIn: 3600}, accesstokens.New()
		client := accesstokens.Client{TokenURL: "https://login.example.com/token", Via: s}
		get := func() string {
			token, _, err := cache.Get(t.Context(), client)
			require.NoError(t, err)
			return token
		}
		require.Equal(t, "t1", get())
		cache.Drop(client, "t1")
		require.Equal(t, "t2", get())
		cache.Drop(client, "t2")
		require.Equal(t, "t2", get(), "who refuses every token does not cost a token with every call")
		time.Sleep(time.Minute)
		cache.Drop(client, "t1")
		require.Equal(t, "t2", get(), "another one than the refused one stays")
		cache.Drop(client, "t2")
		require.Equal(t, "t3", get())
	})
}

func TestNothingTellsTheSecret(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, cache := &server{status: 400, body: `{"error":"invalid_client","error_description":"no s3cret here"}`}, accesstokens.New()
		client := accesstokens.Client{TokenURL: "https://login.example.com/token?key=s3cret", Secret: "s3cret", Via: s}
		_, _, err := cache.Get(t.Context(), client)
		require.EqualError(t, err, "no token from https://login.example.com/token: it answered 400 invalid_client")
		for _, format := range []string{"%v", "%+v", "%#v", "%s"} {
			require.NotContains(t, strings.TrimPrefix(fmt.Sprintf(format, client), client.TokenURL), "s3cret")
		}
	})
}
